"""What the proxy adds to the upstream's CapabilityStatement: that it receives CGM data, and the operation."""

from typing import Any

from cgm_proxy.core.dialects import OPERATION, OPERATION_DEFINITION, RECEIVER
from cgm_proxy.core.errors import Json


def add_receiver(statement: Json) -> Json:
    """Give the statement with `instantiates` and the operation added, once; anything else comes back as it is."""
    if statement.get("resourceType") != "CapabilityStatement":
        return statement
    instantiates = _listed(statement.get("instantiates"))
    added = {**statement, "instantiates": instantiates if RECEIVER in instantiates else [*instantiates, RECEIVER]}
    rest = [_with_operation(part) for part in _listed(statement.get("rest"))]
    return added | ({"rest": rest} if rest else {})


def _with_operation(rest: Any) -> Any:
    if not isinstance(rest, dict) or rest.get("mode") != "server":
        return rest
    operation = {"name": OPERATION.removeprefix("$"), "definition": OPERATION_DEFINITION}
    operations = _listed(rest.get("operation"))
    if any(isinstance(known, dict) and known.get("definition") == OPERATION_DEFINITION for known in operations):
        return rest
    return {**rest, "operation": [*operations, operation]}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
