"""What each RESTful interaction does to the store (https://hl7.org/fhir/R4/http.html), apart from HTTP.

A write has two steps, so that a transaction can put something between them: `plan` finds or makes the place of the
resource (after which its id is known), `carry_out` stores it. References are checked when all is stored.
"""

from dataclasses import dataclass, field, replace

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import references, results, search, wire
from cgm_proxy.sandbox.store.conditions import Pairs
from cgm_proxy.sandbox.store.faults import Refused, success
from cgm_proxy.sandbox.store.parameters import RESOURCE_TYPES
from cgm_proxy.sandbox.store.store import Slot, Store, Version


@dataclass(frozen=True, slots=True)
class Request:
    """One interaction: the method, the path's parts (each "" where absent), and the conditions from the headers."""

    method: str
    type: str = ""
    id: str = ""
    version: str = ""
    shape: str = "type"
    query: Pairs = ()
    condition: str = ""
    resource: JsonObject = field(default_factory=dict)
    if_none_exist: str | None = None
    if_match: str | None = None

    @property
    def reference(self) -> str:
        """The relative reference that the path names."""
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class StoreResponse:
    """The HTTP status, and what it is about: a stored version, the outcome of a write, or other content."""

    status: int
    version: Version | None = None
    outcome: JsonObject | None = None
    content: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will become of a write: `found` is the match of a conditional create, to which nothing is done."""

    request: Request
    slot: Slot
    condition: str | None = None
    found: Version | None = None

    def target(self) -> str:
        """Give the relative reference of the resource that there will be."""
        return self.slot.reference


def plan(store: Store, request: Request) -> Plan:
    """Find or make the place of the resource that a POST or PUT writes."""
    if request.type not in RESOURCE_TYPES:
        raise unknown_type(request.type)
    if request.method == "POST":
        return _plan_create(store, request)
    return _plan_update(store, request) if request.id else _plan_conditional_update(store, request)


def carry_out(store: Store, planned: Plan, resource: JsonObject) -> StoreResponse:
    """Store the resource in its place."""
    if planned.found:
        return _found(planned.found, planned.condition)
    if planned.slot.version and not planned.slot.deleted:
        return _update(store, planned, resource)
    version = store.write(planned.slot, planned.request.method, resource)
    return StoreResponse(201, version, _created(planned, version))


def check_links(store: Store, version: Version) -> None:
    """Raise Refused (400) where a stored resource refers to one that does not exist, as HAPI does."""
    missing = store.select(
        """SELECT l.path, l.target_type, l.target_id FROM link l
        LEFT JOIN resource r ON r.type = l.target_type AND r.id = l.target_id AND NOT r.deleted
        WHERE l.key = ? AND r.key IS NULL LIMIT 1""",
        (version.key,),
    )
    for path, kind, resource_id in missing:
        raise Refused(400, f"HAPI-1094: Resource {kind}/{resource_id} not found, specified in path: {path}")


def check_unreferenced(store: Store, version: Version) -> None:
    """Raise Refused (409) where a deleted resource is still referred to."""
    rows = store.select(
        "SELECT r.type, r.id, l.path FROM link l JOIN resource r USING (key) WHERE target_id = ? AND target_type = ? LIMIT 1",
        (version.id, version.type),
    )
    for kind, resource_id, path in rows:
        text = f"Unable to delete {version.reference} because at least one resource has a reference to this resource."
        raise Refused(409, f"{text} First reference found was resource {kind}/{resource_id} in path {path}")


def satisfies(store: Store, planned: Plan) -> bool:
    """Tell whether what was stored is found by the condition under which it was created."""
    if planned.condition is None or planned.found:
        return True
    return planned.slot.key in search.matches(store, planned.slot.type, planned.condition)


def resolved(store: Store, reference: str) -> str:
    """Resolve a conditional reference (`Patient?identifier=...`) and drop a version from others."""
    kind, mark, _ = reference.partition("?")
    if not mark or kind not in RESOURCE_TYPES:
        return references.without_version(reference)
    keys = search.matches(store, kind, reference)
    if not keys:
        raise Refused(404, f'HAPI-1091: Invalid match URL "{reference}" - No resources match this search')
    if len(keys) > 1:
        raise Refused(412, f'HAPI-2207: Invalid match URL "{reference}" - Multiple resources match this search')
    return store.current(keys)[0].reference


def write(store: Store, request: Request) -> StoreResponse:
    """Create or update one resource, with or without a condition."""
    with store.atomic():
        planned = plan(store, request)
        answer = carry_out(store, planned, references.rewrite(request.resource, lambda one, _: resolved(store, one)))
        if answer.version and not planned.found:
            check_links(store, answer.version)
        if not satisfies(store, planned):
            reason = f"The supplied resource {planned.condition} of type {request.type}"
            text = f"HAPI-0929: Failed to process conditional create. {reason} did not satisfy the conditional URL."
            raise Refused(400, text)
        return answer


def delete(store: Store, request: Request) -> StoreResponse:
    """Delete one resource, by id or by what a query matches; one that is not there is no error."""
    with store.atomic():
        answer = remove(store, request)
        if answer.version:
            check_unreferenced(store, answer.version)
        return answer


def remove(store: Store, request: Request) -> StoreResponse:
    """Delete one resource without asking who refers to it."""
    if not request.id:
        return _remove_match(store, request)
    slot = store.slot(request.type, request.id)
    if slot is None or not slot.version:
        text = f"Not deleted, resource {request.reference} does not exist."
        return StoreResponse(200, None, success("SUCCESSFUL_DELETE_NOT_FOUND", text))
    if slot.deleted:
        text = f"Not deleted, resource {request.reference}/_history/{slot.version} was already deleted."
        outcome = success("SUCCESSFUL_DELETE_ALREADY_DELETED", text)
        return StoreResponse(200, store.version(slot.key, slot.version), outcome)
    _check_version(request, slot)
    return StoreResponse(200, store.delete(slot), success("SUCCESSFUL_DELETE", "Successfully deleted 1 resource(s)."))


def read(store: Store, request: Request) -> StoreResponse:
    """Read the current version or the named one; a deletion raises Refused (410)."""
    slot = _existing(store, request)
    wanted = request.version or str(slot.version)
    version = store.version(slot.key, int(wanted)) if wanted.isdecimal() and len(wanted) < 18 else None
    if version is None:
        raise Refused(404, f'HAPI-0979: Version "{wanted}" is not valid for resource {request.reference}')
    if version.body is None:
        text = f"Resource was deleted at {results.instant(version.updated)}"
        raise Refused(410, text, location=version.location)
    return StoreResponse(200, version)


def history(store: Store, request: Request, base: str) -> StoreResponse:
    """Give the versions of one resource, the newest first."""
    slot = _existing(store, request)
    query = search.parse(request.type, [pair for pair in request.query if pair[0] in {"_count", "_offset"}])
    return StoreResponse(200, content=results.history(base, request.reference, store.history(slot.key), query))


def unknown_type(resource_type: str) -> Refused:
    """Make the refusal of a resource type that R4 does not have."""
    known = ", ".join(sorted(RESOURCE_TYPES))
    return Refused(404, f"HAPI-0302: Unknown resource type '{resource_type}' - Server knows how to handle: [{known}]")


def _existing(store: Store, request: Request) -> Slot:
    slot = store.slot(request.type, request.id)
    if slot is None or not slot.version:
        raise Refused(404, f"HAPI-2001: Resource {request.reference} is not known")
    return slot


def _plan_create(store: Store, request: Request) -> Plan:
    condition = request.if_none_exist
    found = _one_match(store, request, condition, "HAPI-0958: Failed to CREATE") if condition else None
    if found:
        return Plan(request, Slot(found.key, found.type, found.id, found.number, deleted=False), condition, found)
    return Plan(request, store.allocate(request.type), condition)


def _plan_update(store: Store, request: Request) -> Plan:
    slot = store.slot(request.type, request.id)
    if slot:
        _check_version(request, slot)
        return Plan(request, slot)
    if request.id.isdecimal():
        text = (
            f"HAPI-0960: Can not create resource with ID[{request.id}], no resource with this ID exists and clients may"
        )
        raise Refused(400, f"{text} only assign IDs which contain at least one non-numeric character")
    return Plan(request, store.allocate(request.type, request.id))


def _plan_conditional_update(store: Store, request: Request) -> Plan:
    condition = f"{request.type}?{request.condition}"
    found = _one_match(store, request, condition, "HAPI-0988: Failed to UPDATE")
    if found:
        slot = Slot(found.key, found.type, found.id, found.number, deleted=False)
        _check_version(request, slot)
        return Plan(request, slot, condition)
    return Plan(request, store.allocate(request.type), condition)


def _one_match(store: Store, request: Request, condition: str, failed: str) -> Version | None:
    keys = search.matches(store, request.type, condition)
    if len(keys) > 1:
        text = f'{failed} {request.type} with match URL "{condition}" because this search matched {len(keys)} resources'
        raise Refused(412, text)
    return store.current(keys)[0] if keys else None


def _remove_match(store: Store, request: Request) -> StoreResponse:
    condition = f"{request.type}?{request.condition}"
    found = _one_match(store, request, condition, "HAPI-0962: Failed to DELETE")
    if found is None:
        text = f'Unable to find resource matching URL "{condition}". Nothing has been deleted.'
        return StoreResponse(200, None, success("SUCCESSFUL_DELETE_NOT_FOUND", text))
    return remove(store, replace(request, id=found.id))


def _check_version(request: Request, slot: Slot) -> None:
    wanted = (request.if_match or "").strip().removeprefix("W/").strip('"')
    if wanted and wanted not in {"*", str(slot.version)}:
        text = f"HAPI-0550: HAPI-0989: Trying to update {slot.reference}/_history/{wanted}"
        raise Refused(409, f"{text} but this is not the current version")


def _update(store: Store, planned: Plan, resource: JsonObject) -> StoreResponse:
    slot = planned.slot
    current = store.version(slot.key, slot.version)
    if current and current.body and _content(resource, slot) == _content(wire.decode(current.body), slot):
        text = f'Successfully updated resource "{current.location}" with no changes detected.'
        return StoreResponse(200, current, success("SUCCESSFUL_UPDATE_NO_CHANGE", text))
    version = store.write(slot, "PUT", resource)
    if planned.condition is None:
        return StoreResponse(
            200, version, success("SUCCESSFUL_UPDATE", f'Successfully updated resource "{version.location}".')
        )
    text = f'Successfully conditionally updated resource "{version.location}".'
    text = f'{text} Existing resource matched URL "{planned.condition}".'
    return StoreResponse(200, version, success("SUCCESSFUL_UPDATE_WITH_CONDITIONAL_MATCH", text))


def _content(resource: JsonObject, slot: Slot) -> bytes:
    """Give what counts for "no changes": all but the version and its time."""
    meta = resource.get("meta")
    kept = {k: v for k, v in meta.items() if k not in {"versionId", "lastUpdated"}} if isinstance(meta, dict) else {}
    return wire.canonical({**resource, "id": slot.id, "meta": kept})


def _found(version: Version, condition: str | None) -> StoreResponse:
    text = f'Successfully conditionally created resource "{version.location}".'
    text = f'{text} Existing resource matched URL "{condition}".'
    return StoreResponse(200, version, success("SUCCESSFUL_CREATE_WITH_CONDITIONAL_MATCH", text))


def _created(planned: Plan, version: Version) -> JsonObject:
    where, post = f'"{version.location}"', planned.request.method == "POST"
    if planned.condition is None and post:
        return success("SUCCESSFUL_CREATE", f"Successfully created resource {where}.")
    if planned.condition is None:
        text = f"Successfully created resource {where} using update as create (ie. create with client assigned ID)."
        return success("SUCCESSFUL_UPDATE_AS_CREATE", text)
    if post:
        text = f"Successfully conditionally created resource {where}. No existing resources matched URL"
        return success("SUCCESSFUL_CREATE_NO_CONDITIONAL_MATCH", f'{text} "{planned.condition}".')
    text = f"Successfully conditionally updated resource {where}. Created resource because no existing resource matched"
    return success("SUCCESSFUL_UPDATE_NO_CONDITIONAL_MATCH", f'{text} URL "{planned.condition}".')
