"""A search: the SQL that finds its matches, their order, and the form of the result (https://hl7.org/fhir/R4/search.html)."""

# ruff: noqa: S608 -- the SQL is put together from constants; values are always arguments

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from cgm_proxy.sandbox.store.database import Database
from cgm_proxy.sandbox.store.outcomes import StoreError
from cgm_proxy.sandbox.store.search_parameters import parameters_of
from cgm_proxy.sandbox.store.sql_conditions import RESULT_PARAMETERS, QueryParameters, SqlCondition, sql_conditions

#: Resources on a page without `_count` (HAPI's starter).
DEFAULT_COUNT = 20


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A parsed search. If `count` is 0 or `summary` is "count", only the number of matches is wanted."""

    type: str
    conditions: list[SqlCondition]
    order: SqlCondition
    count: int = DEFAULT_COUNT
    offset: int = 0
    summary: str = "false"
    total: bool = False
    elements: frozenset[str] = field(default_factory=frozenset)

    @property
    def counts_only(self) -> bool:
        """Whether only the number of matches is wanted."""
        return self.summary == "count" or self.count == 0

    def sql(self) -> SqlCondition:
        """Return the SQL query for the keys of the matches, in order."""
        where = "".join(f" AND {condition}" for condition, _ in self.conditions)
        arguments = [argument for _, arguments in self.conditions for argument in arguments]
        # The + keeps SQLite from reading all resources of the type where an index table names the few keys.
        type_column = "+r.type" if " AND r.key IN" in where else "r.type"
        sql = f"SELECT r.key FROM resource r WHERE {type_column} = ? AND NOT r.deleted{where} ORDER BY {self.order[0]}r.key"
        return sql, [self.type, *arguments, *self.order[1]]

    def keys(self, database: Database) -> list[int]:
        """Return the keys of the matches."""
        return [row[0] for row in database.select(*self.sql())]


def parse_search(resource_type: str, query: QueryParameters) -> SearchQuery:
    """Return the search that a query string describes; raise StoreError (400) if a parameter is unknown or malformed."""
    shape = {name: value for name, value in query if name in RESULT_PARAMETERS}
    summary = shape.get("_summary", "false")
    if summary not in {"false", "count"}:
        raise StoreError(400, f"This store supports _summary=count and _summary=false, not _summary={summary}")
    return SearchQuery(
        resource_type,
        sql_conditions(resource_type, query),
        _order(resource_type, shape.get("_sort", "")),
        parse_number("_count", shape.get("_count"), DEFAULT_COUNT),
        parse_number("_offset", shape.get("_offset"), 0),
        summary,
        shape.get("_total") == "accurate",
        frozenset(element for element in shape.get("_elements", "").split(",") if element),
    )


def find_matches(database: Database, resource_type: str, url: str) -> list[int]:
    """Return the keys of the resources that match a conditional URL (https://hl7.org/fhir/R4/http.html#ccreate).

    The URL is a query (`identifier=...`) with or without the type before it (`Patient?identifier=...`). Raises StoreError
    (400) if a parameter is unknown or malformed.
    """
    query = url.split("?", 1)[1] if "?" in url else url
    full_url = f"{resource_type}?{query}"
    parameters = parse_qsl(query)
    for name, _ in parameters:
        if name.split(":")[0] not in parameters_of(resource_type):
            reason = f"Resource type {resource_type} does not have a parameter with name: {name}"
            raise StoreError(400, f"HAPI-0488: Failed to parse match URL[{full_url}] - {reason}")
    conditions = sql_conditions(resource_type, parameters)
    if not conditions:
        raise StoreError(400, f"HAPI-0518: Invalid match URL[{full_url}] - URL has no search parameters")
    return SearchQuery(resource_type, conditions, ("", [])).keys(database)


def parse_number(name: str, value: str | None, default: int) -> int:
    """Return a count or an offset; raise StoreError (400) if it is malformed."""
    if not value:
        return default
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise StoreError(400, f"HAPI-0375: Invalid {name} value: {value}")
    return int(value)


def _order(resource_type: str, sort: str) -> SqlCondition:
    terms = [_sort_term(resource_type, name) for name in sort.split(",") if name]
    return "".join(f"{sql}, " for sql, _ in terms), [argument for _, arguments in terms for argument in arguments]


def _sort_term(resource_type: str, name: str) -> SqlCondition:
    direction = "DESC" if name.startswith("-") else "ASC"
    plain_name = name.removeprefix("-")
    parameter = parameters_of(resource_type).get(plain_name)
    if parameter is None or parameter.kind == "reference":
        valid = ", ".join(sorted(parameters_of(resource_type)))
        text = f'HAPI-1194: Unknown _sort parameter value "{plain_name}" for resource type "{resource_type}"'
        raise StoreError(400, f"{text}. Valid values for this search are: [{valid}]")
    if parameter.kind in {"id", "updated"}:
        return f"r.{parameter.kind} {direction}", []
    column, table = ("low", "date") if parameter.kind == "date" else ("code", "token")
    value = f"(SELECT MIN({column}) FROM {table} WHERE key = r.key AND name = ?)"
    return f"{value} {direction} NULLS LAST", [plain_name]
