"""What the proxy changes in the upstream's CapabilityStatement: the public base, and that it receives CGM data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import OPERATION, OPERATION_DEFINITION, RECEIVER_CAPABILITIES

#: A client may choose between a synchronous and an asynchronous response (FHIR Extensions Pack, for R4 as well).
EITHER = {"url": "http://hl7.org/fhir/StructureDefinition/synchronicity-control", "valueUri": "either"}

#: The elements of a statement with URLs at its server's base. HAPI keeps the base of the first request, which may be a probe.
ADDRESSES = (
    ("implementation", "url"),
    ("rest", "operation", "definition"),
    ("rest", "resource", "operation", "definition"),
)


def publish(statement: JsonObject, public: Callable[[str], str]) -> JsonObject:
    """Return the statement with `public` applied to the URLs at its server's base; any other resource is returned unchanged."""
    if statement.get("resourceType") == "CapabilityStatement":
        for path in ADDRESSES:
            statement = _replaced(statement, path, public)
    return statement


def _replaced(value: Any, path: tuple[str, ...], public: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_replaced(item, path, public) for item in value]
    if path and isinstance(value, dict) and path[0] in value:
        return {**value, path[0]: _replaced(value[path[0]], path[1:], public)}
    return public(value) if not path and isinstance(value, str) else value


def add_receiver(
    statement: JsonObject, *, asynchronous: bool = False, profiles: Mapping[str, Sequence[str]] | None = None
) -> JsonObject:
    """Return the statement with `instantiates` and the operation added once; any other resource is returned unchanged.

    `asynchronous` is whether the operation can also be answered later. `profiles` are added to the supported profiles of the
    resource types that they are of.
    """
    if statement.get("resourceType") != "CapabilityStatement":
        return statement
    instantiates = _listed(statement.get("instantiates"))
    added = {
        **statement,
        "instantiates": instantiates
        if RECEIVER_CAPABILITIES in instantiates
        else [*instantiates, RECEIVER_CAPABILITIES],
    }
    operation: JsonObject = {"name": OPERATION.removeprefix("$"), "definition": OPERATION_DEFINITION}
    operation |= {"extension": [EITHER]} if asynchronous else {}
    rest = [_with_profiles(_with_operation(part, operation), profiles or {}) for part in _listed(statement.get("rest"))]
    return added | ({"rest": rest} if rest else {})


def _with_operation(rest: Any, operation: JsonObject) -> Any:
    if not isinstance(rest, dict) or rest.get("mode") != "server":
        return rest
    operations = _listed(rest.get("operation"))
    if any(isinstance(known, dict) and known.get("definition") == OPERATION_DEFINITION for known in operations):
        return rest
    return {**rest, "operation": [*operations, operation]}


def _with_profiles(rest: Any, profiles: Mapping[str, Sequence[str]]) -> Any:
    if not isinstance(rest, dict) or rest.get("mode") != "server" or "resource" not in rest:
        return rest
    resources = []
    for each in _listed(rest["resource"]):
        added = profiles.get(str(each.get("type")), ()) if isinstance(each, dict) else ()
        known = _listed(each.get("supportedProfile")) if added else []
        new = [url for url in added if url not in known]
        resources.append({**each, "supportedProfile": [*known, *new]} if new else each)
    return {**rest, "resource": resources}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
