"""What the proxy adds to the upstream's CapabilityStatement: that it receives CGM data, and the operation."""

from cgm_proxy.core.dialects import OPERATION, OPERATION_DEFINITION, RECEIVER
from cgm_proxy.core.errors import Json


def add_receiver(statement: Json) -> Json:
    """Give the statement with `instantiates` and the operation added, once; anything else comes back as it is."""
    if statement.get("resourceType") != "CapabilityStatement":
        return statement
    instantiates = statement.get("instantiates") or []
    added = {**statement, "instantiates": [*instantiates, *({RECEIVER} - set(instantiates))]}
    rest = [_with_operation(part) if part.get("mode") == "server" else part for part in statement.get("rest") or []]
    return added | ({"rest": rest} if rest else {})


def _with_operation(rest: Json) -> Json:
    operation = {"name": OPERATION.removeprefix("$"), "definition": OPERATION_DEFINITION}
    operations = rest.get("operation") or []
    if any(known.get("definition") == OPERATION_DEFINITION for known in operations):
        return rest
    return {**rest, "operation": [*operations, operation]}
