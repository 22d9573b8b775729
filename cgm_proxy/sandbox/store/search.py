"""A search: its matches, their order, and how the answer is to look (https://hl7.org/fhir/R4/search.html)."""

# ruff: noqa: S608 -- the SQL is put together from constants; values are always arguments

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from cgm_proxy.sandbox.store import parameters
from cgm_proxy.sandbox.store.conditions import RESULT, Condition, Pairs, conditions
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.store import Store

#: Resources on a page without `_count` (HAPI's starter).
DEFAULT_COUNT = 20


@dataclass(frozen=True, slots=True)
class Query:
    """A search as it was understood; `count` 0 and `summary` "count" ask for the number of matches only."""

    type: str
    conditions: list[Condition]
    order: Condition
    count: int = DEFAULT_COUNT
    offset: int = 0
    summary: str = "false"
    total: bool = False
    elements: frozenset[str] = field(default_factory=frozenset)

    @property
    def counts_only(self) -> bool:
        """Whether only the number of matches is wanted."""
        return self.summary == "count" or self.count == 0

    def sql(self) -> Condition:
        """Give the query for the keys of the matches, in order."""
        where = "".join(f" AND {condition}" for condition, _ in self.conditions)
        arguments = [argument for _, some in self.conditions for argument in some]
        # The + keeps SQLite from walking through all resources of the type where an index table names the few keys.
        kind = "+r.type" if " AND r.key IN" in where else "r.type"
        sql = f"SELECT r.key FROM resource r WHERE {kind} = ? AND NOT r.deleted{where} ORDER BY {self.order[0]}r.key"
        return sql, [self.type, *arguments, *self.order[1]]

    def keys(self, store: Store) -> list[int]:
        """Find the matches."""
        return [row[0] for row in store.select(*self.sql())]


def parse(resource_type: str, pairs: Pairs) -> Query:
    """Read the parameters of a search; raises Refused (400) on what is unknown or malformed."""
    wanted = {name: value for name, value in pairs if name in RESULT}
    return Query(
        resource_type,
        conditions(resource_type, pairs),
        _order(resource_type, wanted.get("_sort", "")),
        number("_count", wanted.get("_count"), DEFAULT_COUNT),
        number("_offset", wanted.get("_offset"), 0),
        _summary(wanted.get("_summary", "false")),
        wanted.get("_total") == "accurate",
        frozenset(element for element in wanted.get("_elements", "").split(",") if element),
    )


def matches(store: Store, resource_type: str, url: str) -> list[int]:
    """Find what a conditional URL (`identifier=...` or `Patient?identifier=...`) matches; raises Refused (400)."""
    return match_query(resource_type, url).keys(store)


def match_query(resource_type: str, url: str) -> Query:
    """Read a conditional URL (https://hl7.org/fhir/R4/http.html#ccreate)."""
    query = url.split("?", 1)[1] if "?" in url else url
    pairs = parse_qsl(query)
    full = f"{resource_type}?{query}"
    for name, _ in pairs:
        if name.split(":")[0] not in parameters.of(resource_type):
            reason = f"Resource type {resource_type} does not have a parameter with name: {name}"
            raise Refused(400, f"HAPI-0488: Failed to parse match URL[{full}] - {reason}")
    wanted = conditions(resource_type, pairs)
    if not wanted:
        raise Refused(400, f"HAPI-0518: Invalid match URL[{full}] - URL has no search parameters")
    return Query(resource_type, wanted, ("", []))


def _order(resource_type: str, sort: str) -> Condition:
    terms = [_term(resource_type, name) for name in sort.split(",") if name]
    return "".join(f"{sql}, " for sql, _ in terms), [argument for _, some in terms for argument in some]


def _term(resource_type: str, name: str) -> Condition:
    direction = "DESC" if name.startswith("-") else "ASC"
    plain = name.removeprefix("-")
    parameter = parameters.of(resource_type).get(plain)
    if parameter is None or parameter.kind == "reference":
        valid = ", ".join(sorted(parameters.of(resource_type)))
        text = f'HAPI-1194: Unknown _sort parameter value "{plain}" for resource type "{resource_type}"'
        raise Refused(400, f"{text}. Valid values for this search are: [{valid}]")
    if parameter.kind in {"id", "updated"}:
        return f"r.{parameter.kind} {direction}", []
    column, table = ("low", "date") if parameter.kind == "date" else ("code", "token")
    value = f"(SELECT MIN({column}) FROM {table} WHERE key = r.key AND name = ?)"
    return f"{value} {direction} NULLS LAST", [plain]


def number(name: str, value: str | None, default: int) -> int:
    """Read a count or an offset; raises Refused (400)."""
    if not value:
        return default
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise Refused(400, f"HAPI-0375: Invalid {name} value: {value}")
    return int(value)


def _summary(value: str) -> str:
    if value not in {"false", "count"}:
        raise Refused(400, f"This store supports _summary=count and _summary=false, not _summary={value}")
    return value
