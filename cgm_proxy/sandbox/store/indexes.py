"""The rows by which a resource is found: one for each value of each of its search parameters."""

from collections.abc import Iterator
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import moments, parameters
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.moments import Span
from cgm_proxy.sandbox.store.parameters import Parameter

#: Parameter name, system (or "") and code.
TokenRow = tuple[str, str, str]
#: Parameter name, first and last millisecond.
DateRow = tuple[str, int, int]


def tokens(resource: JsonObject) -> set[TokenRow]:
    """Give the rows of the resource's tokens, URIs and strings (in lower case)."""
    return {
        (name, system, code)
        for name, parameter in parameters.of(resource["resourceType"]).items()
        if parameter.kind in {"token", "uri", "string"}
        for value in _values(resource, parameter)
        for system, code in _codes(value, parameter)
    }


def dates(resource: JsonObject) -> set[DateRow]:
    """Give the rows of the resource's dates; raises Refused (400) on a malformed one."""
    return {
        (name, *span)
        for name, parameter in parameters.of(resource["resourceType"]).items()
        if parameter.kind == "date"
        for value in _values(resource, parameter)
        for span in _spans(value)
    }


def _values(resource: JsonObject, parameter: Parameter) -> Iterator[Any]:
    for path in parameter.paths:
        yield from _below(resource, path.split("."))


def _below(value: Any, steps: list[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for inner in value:
            yield from _below(inner, steps)
    elif not steps:
        yield value
    elif isinstance(value, dict) and steps[0] in value:
        yield from _below(value[steps[0]], steps[1:])


def _codes(value: Any, parameter: Parameter) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool):
        yield "", str(value).lower()
    elif isinstance(value, str):
        yield parameter.system, value.lower() if parameter.kind == "string" else value
    elif isinstance(value, dict):
        codings = value.get("coding", [value])
        for coding in codings if isinstance(codings, list) else []:
            code = coding.get("code", coding.get("value")) if isinstance(coding, dict) else None
            if isinstance(code, str):
                yield str(coding.get("system", "")), code


def _spans(value: Any) -> list[Span]:
    try:
        return list(moments.spans(value))
    except ValueError as fault:
        raise Refused(400, f'HAPI-1821: Invalid date/time format: "{fault}"') from None
