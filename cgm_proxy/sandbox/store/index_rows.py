"""The index rows of a resource: one for each value of each of its search parameters."""

from collections.abc import Iterator
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import time_spans
from cgm_proxy.sandbox.store.outcomes import StoreError
from cgm_proxy.sandbox.store.search_parameters import SearchParameter, parameters_of

#: Parameter name, system (or "") and code.
TokenRow = tuple[str, str, str]
#: Parameter name, first and last millisecond.
DateRow = tuple[str, int, int]


def token_rows(resource: JsonObject) -> set[TokenRow]:
    """Return the rows of the resource's tokens, URIs and strings (in lower case)."""
    return {
        (name, system, code)
        for name, parameter in parameters_of(resource["resourceType"]).items()
        if parameter.kind in {"token", "uri", "string"}
        for value in _values(resource, parameter)
        for system, code in _codes(value, parameter)
    }


def date_rows(resource: JsonObject) -> set[DateRow]:
    """Return the rows of the resource's dates; raise StoreError (400) for a malformed one."""
    return {
        (name, *span)
        for name, parameter in parameters_of(resource["resourceType"]).items()
        if parameter.kind == "date"
        for value in _values(resource, parameter)
        for span in _spans(value)
    }


def _values(resource: JsonObject, parameter: SearchParameter) -> Iterator[Any]:
    for path in parameter.paths:
        yield from _elements(resource, path.split("."))


def _elements(value: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _elements(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _elements(value[path[0]], path[1:])


def _codes(value: Any, parameter: SearchParameter) -> Iterator[tuple[str, str]]:
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


def _spans(value: Any) -> list[time_spans.Span]:
    try:
        return list(time_spans.spans(value))
    except ValueError as error:
        raise StoreError(400, f'HAPI-1821: Invalid date/time format: "{error}"') from None
