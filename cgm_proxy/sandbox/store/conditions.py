"""One search parameter becomes one SQL condition (https://hl7.org/fhir/R4/search.html#prefix and following).

A condition is `r.key IN (SELECT key FROM an index table ...)`; repeated parameters are AND, values separated by commas OR.
"""

# ruff: noqa: S608 -- the SQL is put together from this file's constants; values are always arguments

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cgm_proxy.sandbox.store import moments, parameters
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.parameters import Parameter

Pairs = Sequence[tuple[str, str]]
#: SQL with a `?` for each of the arguments.
Condition = tuple[str, list[Any]]

#: Parameters that shape the answer, and HAPI's for the format, which JSON alone leaves without effect.
RESULT = frozenset({"_count", "_offset", "_sort", "_elements", "_summary", "_total", "_format", "_pretty"})

#: FHIR's parameters that this store does not have: ignoring them would give wrong answers.
_REFUSED = frozenset(
    {"_content", "_contained", "_filter", "_has", "_include", "_list", "_query", "_revinclude", "_text"}
)

#: How a resource's span (low, high) compares with the value's; HAPI's readings of the prefixes.
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


def conditions(resource_type: str, pairs: Pairs) -> list[Condition]:
    """Give a condition for each parameter that has a value; raises Refused (400) on what is unknown or malformed."""
    searched = [(name, value) for name, value in pairs if value.strip(",") and name not in RESULT]
    return [_condition(resource_type, *pair) for pair in searched if _is_known(resource_type, pair[0])]


def _is_known(resource_type: str, name: str) -> bool:
    plain = name.split(":")[0]
    if plain in parameters.of(resource_type):
        return True
    if plain.startswith("_") and plain not in _REFUSED:
        return False  # HAPI ignores them, as FHIR wants of unknown result parameters
    valid = ", ".join(sorted(parameters.of(resource_type)))
    text = f'HAPI-0524: Unknown search parameter "{name}" for resource type "{resource_type}".'
    raise Refused(400, f"{text} Valid search parameters for this search are: [{valid}]")


def _condition(resource_type: str, name: str, value: str) -> Condition:
    plain, _, modifier = name.partition(":")
    parameter = parameters.of(resource_type)[plain]
    if modifier == "missing" and parameter.kind not in {"id", "updated"}:
        return _missing(resource_type, plain, parameter, missing=value == "true")
    if modifier == "not" and parameter.kind == "token":
        sql, arguments = _token(resource_type, plain, parameter, _split(value))
        return f"NOT {sql}", arguments
    if modifier and not (parameter.kind == "reference" and modifier in parameters.RESOURCE_TYPES):
        text = f'Unsupported modifier "{modifier}" of search parameter "{plain}" for resource type "{resource_type}"'
        raise Refused(400, text)
    values = _split(value)
    if parameter.kind == "reference":
        return _reference(resource_type, parameter, [_target(one, modifier or parameter.target) for one in values])
    return _PLAIN[parameter.kind](resource_type, plain, parameter, values)


def _split(value: str) -> list[str]:
    return [part for part in re.split(r"(?<!\\),", value) if part]


def _unescaped(value: str) -> str:
    return re.sub(r"\\([\\,|$])", r"\1", value)


def _ids(_type: str, _name: str, _parameter: Parameter, values: list[str]) -> Condition:
    return f"r.id IN ({_marks(values)})", [value.rsplit("/", 1)[-1] for value in values]


def _token(resource_type: str, name: str, _parameter: Parameter, values: list[str]) -> Condition:
    codes: dict[str | None, list[str]] = defaultdict(list)
    for value in values:
        system, bar, code = _cut(value)
        codes[system if bar else None].append(_unescaped(code))
    tests = [_codes(system, some) for system, some in codes.items()]
    either = " OR ".join(f"({sql})" for sql, _ in tests)
    arguments = [argument for _, some in tests for argument in some]
    return _indexed("token", either), [resource_type, name, *arguments]


def _cut(value: str) -> tuple[str, str, str]:
    system, bar, code = re.fullmatch(r"((?:\\.|[^|\\])*)(\|?)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    return (_unescaped(system), bar, code) if bar else ("", "", system)


def _codes(system: str | None, codes: list[str]) -> Condition:
    if system is None:
        return f"code IN ({_marks(codes)})", codes
    if codes == [""]:
        return "system = ?", [system]
    return f"code IN ({_marks(codes)}) AND system = ?", [*codes, system]


def _uri(resource_type: str, name: str, _parameter: Parameter, values: list[str]) -> Condition:
    return _indexed("token", f"code IN ({_marks(values)})"), [resource_type, name, *map(_unescaped, values)]


def _string(resource_type: str, name: str, _parameter: Parameter, values: list[str]) -> Condition:
    starts = [_unescaped(value).lower() for value in values]
    either = " OR ".join("code >= ? AND code < ?" for _ in starts)
    bounds = [bound for start in starts for bound in (start, start + "\U0010ffff")]
    return _indexed("token", either), [resource_type, name, *bounds]


def _date(resource_type: str, name: str, _parameter: Parameter, values: list[str]) -> Condition:
    test, arguments = _compare(values)
    return _indexed("date", test), [resource_type, name, *arguments]


def _updated(_type: str, _name: str, _parameter: Parameter, values: list[str]) -> Condition:
    test, arguments = _compare(values)
    return re.sub(r"\b(low|high)\b", "r.updated", test), arguments


def _compare(values: list[str]) -> Condition:
    if len(values) > 1:
        raise Refused(400, "HAPI-1930: DateRange parameter does not support OR queries")
    prefix, value = re.fullmatch(r"([A-Za-z]*)(.*)", values[0], re.DOTALL).groups()  # type: ignore[union-attr]
    if not value:
        raise Refused(400, f'HAPI-1940: Invalid date/time/quantity format: "{values[0]}"')
    if prefix and prefix not in _PREFIXES:
        raise Refused(400, f'HAPI-1941: Invalid prefix: "{prefix}"')
    try:
        low, high = moments.span(value.replace(" ", "+"))
    except ValueError:
        raise Refused(400, f'HAPI-1882: Invalid date/time format: "{value}"') from None
    test, bounds = _PREFIXES[prefix or "eq"]
    return test, [{"l": low, "h": high}[bound] for bound in bounds]


def _target(value: str, implied: str) -> tuple[str, str]:
    kind, _, resource_id = value.rpartition("/")
    return kind or implied, resource_id


def _reference(resource_type: str, parameter: Parameter, targets: list[tuple[str, str]]) -> Condition:
    if parameter.target:
        targets = [target for target in targets if target[0] == parameter.target] or [("", "")]
    tests = ["target_id = ?" + (" AND target_type = ?" if kind else "") for kind, _ in targets]
    values = [value for kind, resource_id in targets for value in ((resource_id, kind) if kind else (resource_id,))]
    paths = [f"{resource_type}.{path}" for path in parameter.paths]
    either = " OR ".join(f"({test})" for test in tests)
    return f"r.key IN (SELECT key FROM link WHERE ({either}) AND path IN ({_marks(paths)}))", [*values, *paths]


def _missing(resource_type: str, name: str, parameter: Parameter, *, missing: bool) -> Condition:
    negation = "NOT " if missing else ""
    if parameter.kind == "reference":
        paths = [f"{resource_type}.{path}" for path in parameter.paths]
        return f"{negation}r.key IN (SELECT key FROM link WHERE path IN ({_marks(paths)}))", list(paths)
    table = "date" if parameter.kind == "date" else "token"
    return f"{negation}{_indexed(table, '1')}", [resource_type, name]


def _indexed(table: str, test: str) -> str:
    return f"r.key IN (SELECT key FROM {table} WHERE type = ? AND name = ? AND ({test}))"


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


_PLAIN = {"id": _ids, "token": _token, "uri": _uri, "string": _string, "date": _date, "updated": _updated}
