"""SQL conditions for search parameters (https://hl7.org/fhir/R4/search.html#prefix and following).

Each parameter becomes one condition, `r.key IN (SELECT key FROM an index table ...)`. All conditions must hold; of the
comma-separated values of a parameter one must match.
"""

# ruff: noqa: S608 -- the SQL is put together from this file's constants; values are always arguments

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cgm_proxy.sandbox.store import time_spans
from cgm_proxy.sandbox.store.outcomes import StoreError
from cgm_proxy.sandbox.store.search_parameters import RESOURCE_TYPES, SearchParameter, parameters_of

#: Names and values of a query string, in order.
QueryParameters = Sequence[tuple[str, str]]
#: SQL with a `?` for each of the arguments.
SqlCondition = tuple[str, list[Any]]

#: Parameters that shape the result, and HAPI's parameters for the format, which have no effect here: the store has only JSON.
RESULT_PARAMETERS = frozenset({"_count", "_offset", "_sort", "_elements", "_summary", "_total", "_format", "_pretty"})

#: FHIR's parameters that this store does not support. To ignore them would give wrong results.
_UNSUPPORTED = frozenset(
    {"_content", "_contained", "_filter", "_has", "_include", "_list", "_query", "_revinclude", "_text"}
)

#: How the span of an element (low, high) compares with that of the value, as HAPI interprets the prefixes.
_PREFIXES = {
    "eq": ("low >= ? AND high <= ?", "lh"),
    "ne": ("(low < ? OR high > ?)", "lh"),
    "ge": ("high >= ?", "l"),
    "gt": ("high > ?", "h"),
    "le": ("low <= ?", "h"),
    "lt": ("low < ?", "l"),
    "sa": ("low > ?", "h"),
    "eb": ("high < ?", "l"),
}


def sql_conditions(resource_type: str, query: QueryParameters) -> list[SqlCondition]:
    """Return a condition for each parameter with a value; raise StoreError (400) if one is unknown or malformed."""
    searched = [(name, value) for name, value in query if value.strip(",") and name not in RESULT_PARAMETERS]
    return [_condition(resource_type, name, value) for name, value in searched if _is_known(resource_type, name)]


def _is_known(resource_type: str, name: str) -> bool:
    plain_name = name.split(":")[0]
    if plain_name in parameters_of(resource_type):
        return True
    if plain_name.startswith("_") and plain_name not in _UNSUPPORTED:
        return False  # HAPI ignores unknown result parameters, as FHIR demands
    valid = ", ".join(sorted(parameters_of(resource_type)))
    text = f'HAPI-0524: Unknown search parameter "{name}" for resource type "{resource_type}".'
    raise StoreError(400, f"{text} Valid search parameters for this search are: [{valid}]")


def _condition(resource_type: str, name: str, value: str) -> SqlCondition:
    plain_name, _, modifier = name.partition(":")
    parameter = parameters_of(resource_type)[plain_name]
    values = [part for part in re.split(r"(?<!\\),", value) if part]
    if modifier == "missing" and parameter.kind not in {"id", "updated"}:
        return _missing(resource_type, plain_name, parameter, missing=value == "true")
    if modifier == "not" and parameter.kind == "token":
        sql, arguments = _token(resource_type, plain_name, parameter, values)
        return f"NOT {sql}", arguments
    if modifier and not (parameter.kind == "reference" and modifier in RESOURCE_TYPES):
        text = (
            f'Unsupported modifier "{modifier}" of search parameter "{plain_name}" for resource type "{resource_type}"'
        )
        raise StoreError(400, text)
    if parameter.kind == "reference":
        return _reference(resource_type, parameter, values, modifier)
    return _BY_KIND[parameter.kind](resource_type, plain_name, parameter, values)


def _unescaped(value: str) -> str:
    return re.sub(r"\\([\\,|$])", r"\1", value)


def _ids(_type: str, _name: str, _parameter: SearchParameter, values: list[str]) -> SqlCondition:
    return f"r.id IN ({_placeholders(values)})", [value.rsplit("/", 1)[-1] for value in values]


def _token(resource_type: str, name: str, _parameter: SearchParameter, values: list[str]) -> SqlCondition:
    codes_by_system: dict[str | None, list[str]] = defaultdict(list)
    for value in values:
        system, code = _system_and_code(value)
        codes_by_system[system].append(_unescaped(code))
    tests = [_codes(system, codes) for system, codes in codes_by_system.items()]
    any_test = " OR ".join(f"({sql})" for sql, _ in tests)
    arguments = [argument for _, codes in tests for argument in codes]
    return _indexed("token", any_test), [resource_type, name, *arguments]


def _system_and_code(value: str) -> tuple[str | None, str]:
    """Split `system|code`; the system is None if there is no bar, and then any system matches."""
    match = re.fullmatch(r"((?:\\.|[^|\\])*)\|(.*)", value, re.DOTALL)
    return (_unescaped(match[1]), match[2]) if match else (None, value)


def _codes(system: str | None, codes: list[str]) -> SqlCondition:
    if system is None:
        return f"code IN ({_placeholders(codes)})", codes
    if codes == [""]:
        return "system = ?", [system]
    return f"code IN ({_placeholders(codes)}) AND system = ?", [*codes, system]


def _uri(resource_type: str, name: str, _parameter: SearchParameter, values: list[str]) -> SqlCondition:
    return _indexed("token", f"code IN ({_placeholders(values)})"), [resource_type, name, *map(_unescaped, values)]


def _string(resource_type: str, name: str, _parameter: SearchParameter, values: list[str]) -> SqlCondition:
    starts = [_unescaped(value).lower() for value in values]
    any_start = " OR ".join("code >= ? AND code < ?" for _ in starts)
    bounds = [bound for start in starts for bound in (start, start + "\U0010ffff")]
    return _indexed("token", any_start), [resource_type, name, *bounds]


def _date(resource_type: str, name: str, _parameter: SearchParameter, values: list[str]) -> SqlCondition:
    test, arguments = _comparison(values)
    return _indexed("date", test), [resource_type, name, *arguments]


def _updated(_type: str, _name: str, _parameter: SearchParameter, values: list[str]) -> SqlCondition:
    test, arguments = _comparison(values)
    return re.sub(r"\b(low|high)\b", "r.updated", test), arguments


def _comparison(values: list[str]) -> SqlCondition:
    if len(values) > 1:
        raise StoreError(400, "HAPI-1930: DateRange parameter does not support OR queries")
    prefix, value = re.fullmatch(r"([A-Za-z]*)(.*)", values[0], re.DOTALL).groups()  # type: ignore[union-attr]
    if not value:
        raise StoreError(400, f'HAPI-1940: Invalid date/time/quantity format: "{values[0]}"')
    if prefix and prefix not in _PREFIXES:
        raise StoreError(400, f'HAPI-1941: Invalid prefix: "{prefix}"')
    try:
        low, high = time_spans.span(value.replace(" ", "+"))
    except ValueError:
        raise StoreError(400, f'HAPI-1882: Invalid date/time format: "{value}"') from None
    test, bounds = _PREFIXES[prefix or "eq"]
    return test, [{"l": low, "h": high}[bound] for bound in bounds]


def _reference(resource_type: str, parameter: SearchParameter, values: list[str], modifier: str) -> SqlCondition:
    targets = []
    for value in values:
        target_type, _, target_id = value.rpartition("/")
        targets.append((target_type or modifier or parameter.target, target_id))
    if parameter.target:
        targets = [target for target in targets if target[0] == parameter.target] or [("", "")]
    tests = ["target_id = ?" + (" AND target_type = ?" if target_type else "") for target_type, _ in targets]
    arguments = [
        part
        for target_type, target_id in targets
        for part in ((target_id, target_type) if target_type else (target_id,))
    ]
    paths = [f"{resource_type}.{path}" for path in parameter.paths]
    any_target = " OR ".join(f"({test})" for test in tests)
    sql = f"r.key IN (SELECT key FROM reference WHERE ({any_target}) AND path IN ({_placeholders(paths)}))"
    return sql, [*arguments, *paths]


def _missing(resource_type: str, name: str, parameter: SearchParameter, *, missing: bool) -> SqlCondition:
    negation = "NOT " if missing else ""
    if parameter.kind == "reference":
        paths = [f"{resource_type}.{path}" for path in parameter.paths]
        return f"{negation}r.key IN (SELECT key FROM reference WHERE path IN ({_placeholders(paths)}))", list(paths)
    table = "date" if parameter.kind == "date" else "token"
    return f"{negation}{_indexed(table, '1')}", [resource_type, name]


def _indexed(table: str, test: str) -> str:
    return f"r.key IN (SELECT key FROM {table} WHERE type = ? AND name = ? AND ({test}))"


def _placeholders(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


_BY_KIND = {"id": _ids, "token": _token, "uri": _uri, "string": _string, "date": _date, "updated": _updated}
