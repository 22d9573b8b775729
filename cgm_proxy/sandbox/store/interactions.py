"""The effect of each RESTful interaction on the store (https://hl7.org/fhir/R4/http.html), without HTTP.

A write has two steps, so that a transaction can resolve references between them: `plan_write` finds or adds the row of the
resource, which settles its id; `carry_out` stores the resource. References are checked after everything is stored.
"""

from dataclasses import dataclass, field, replace

import msgspec

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import references, result_bundles, time_spans
from cgm_proxy.sandbox.store.database import Database, ResourceRow, Version
from cgm_proxy.sandbox.store.outcomes import StoreError, success
from cgm_proxy.sandbox.store.search import find_matches, parse_search
from cgm_proxy.sandbox.store.search_parameters import RESOURCE_TYPES
from cgm_proxy.sandbox.store.sql_conditions import QueryParameters

_sorting_encoder = msgspec.json.Encoder(decimal_format="number", order="sorted")


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A request for one interaction.

    `endpoint` is the form of the path: "type", "search", "instance", "history", "version" or "metadata". The parts of the
    path that this form does not have are "".
    """

    method: str
    endpoint: str
    type: str = ""
    id: str = ""
    version: str = ""
    query: QueryParameters = ()
    query_string: str = ""
    resource: JsonObject = field(default_factory=dict)
    if_none_exist: str | None = None
    if_match: str | None = None

    @property
    def reference(self) -> str:
        """The relative reference to the resource that the path names."""
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class StoreResponse:
    """The HTTP status, and the content: a stored version, the outcome of a write, or other JSON."""

    status: int
    version: Version | None = None
    outcome: JsonObject | None = None
    content: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What a write will do. `match` is what a conditional create found; it stays as it is."""

    request: StoreRequest
    row: ResourceRow
    condition: str | None = None
    match: Version | None = None


def plan_write(database: Database, request: StoreRequest) -> WritePlan:
    """Find the row of the resource that a POST or PUT writes, or add it."""
    if request.type not in RESOURCE_TYPES:
        raise unknown_type(request.type)
    if request.method == "POST":
        return _plan_create(database, request)
    return _plan_update(database, request) if request.id else _plan_conditional_update(database, request)


def carry_out(database: Database, plan: WritePlan, resource: JsonObject) -> StoreResponse:
    """Store the resource as planned."""
    if plan.match:
        text = f'Successfully conditionally created resource "{plan.match.location}".'
        text = f'{text} Existing resource matched URL "{plan.condition}".'
        return StoreResponse(200, plan.match, success("SUCCESSFUL_CREATE_WITH_CONDITIONAL_MATCH", text))
    if plan.row.version and not plan.row.deleted:
        return _update(database, plan, resource)
    version = database.write(plan.row, plan.request.method, resource)
    return StoreResponse(201, version, _created(plan, version))


def check_references(database: Database, version: Version) -> None:
    """Raise StoreError (400) if a stored resource refers to one that does not exist, as on HAPI."""
    missing = database.select(
        """SELECT f.path, f.target_type, f.target_id FROM reference f
        LEFT JOIN resource r ON r.type = f.target_type AND r.id = f.target_id AND NOT r.deleted
        WHERE f.key = ? AND r.key IS NULL LIMIT 1""",
        (version.key,),
    )
    for path, target_type, target_id in missing:
        raise StoreError(400, f"HAPI-1094: Resource {target_type}/{target_id} not found, specified in path: {path}")


def check_unreferenced(database: Database, version: Version) -> None:
    """Raise StoreError (409) if another resource refers to a deleted one."""
    rows = database.select(
        """SELECT r.type, r.id, f.path FROM reference f JOIN resource r USING (key)
        WHERE target_id = ? AND target_type = ? LIMIT 1""",
        (version.id, version.type),
    )
    for source_type, source_id, path in rows:
        text = f"Unable to delete {version.reference} because at least one resource has a reference to this resource."
        raise StoreError(409, f"{text} First reference found was resource {source_type}/{source_id} in path {path}")


def satisfies_condition(database: Database, plan: WritePlan) -> bool:
    """Whether a stored resource matches the condition of its conditional create."""
    if plan.condition is None or plan.match:
        return True
    return plan.row.key in find_matches(database, plan.row.type, plan.condition)


def resolve_reference(database: Database, reference: str) -> str:
    """Return the reference that a conditional one (`Patient?identifier=...`) means, or another one without its version."""
    target_type, mark, _ = reference.partition("?")
    if not mark or target_type not in RESOURCE_TYPES:
        return references.without_version(reference)
    keys = find_matches(database, target_type, reference)
    if not keys:
        raise StoreError(404, f'HAPI-1091: Invalid match URL "{reference}" - No resources match this search')
    if len(keys) > 1:
        raise StoreError(412, f'HAPI-2207: Invalid match URL "{reference}" - Multiple resources match this search')
    return database.current(keys)[0].reference


def write(database: Database, request: StoreRequest) -> StoreResponse:
    """Create or update one resource, with or without a condition."""
    with database.transaction():
        plan = plan_write(database, request)
        resource = references.rewrite(request.resource, lambda reference, _: resolve_reference(database, reference))
        response = carry_out(database, plan, resource)
        if response.version and not plan.match:
            check_references(database, response.version)
        if not satisfies_condition(database, plan):
            reason = f"The supplied resource {plan.condition} of type {request.type}"
            text = f"HAPI-0929: Failed to process conditional create. {reason} did not satisfy the conditional URL."
            raise StoreError(400, text)
        return response


def delete(database: Database, request: StoreRequest) -> StoreResponse:
    """Delete one resource, by id or by a query that it matches; it is no error if there is none."""
    with database.transaction():
        response = delete_unchecked(database, request)
        if response.version:
            check_unreferenced(database, response.version)
        return response


def delete_unchecked(database: Database, request: StoreRequest) -> StoreResponse:
    """Delete one resource, whether or not others refer to it."""
    if not request.id:
        condition = f"{request.type}?{request.query_string}"
        match = _one_match(database, request, condition, "HAPI-0962: Failed to DELETE")
        if match is None:
            text = f'Unable to find resource matching URL "{condition}". Nothing has been deleted.'
            return StoreResponse(200, None, success("SUCCESSFUL_DELETE_NOT_FOUND", text))
        request = replace(request, id=match.id)
    row = database.row(request.type, request.id)
    if row is None or not row.version:
        text = f"Not deleted, resource {request.reference} does not exist."
        return StoreResponse(200, None, success("SUCCESSFUL_DELETE_NOT_FOUND", text))
    if row.deleted:
        text = f"Not deleted, resource {request.reference}/_history/{row.version} was already deleted."
        outcome = success("SUCCESSFUL_DELETE_ALREADY_DELETED", text)
        return StoreResponse(200, database.version(row.key, row.version), outcome)
    _check_version(request, row)
    return StoreResponse(200, database.delete(row), success("SUCCESSFUL_DELETE", "Successfully deleted 1 resource(s)."))


def read(database: Database, request: StoreRequest) -> StoreResponse:
    """Return the current version of a resource, or the one that is named; raise StoreError (410) for a deletion."""
    row = _existing(database, request)
    number = request.version or str(row.version)
    version = database.version(row.key, int(number)) if number.isdecimal() and len(number) < 18 else None
    if version is None:
        raise StoreError(404, f'HAPI-0979: Version "{number}" is not valid for resource {request.reference}')
    if version.body is None:
        text = f"Resource was deleted at {time_spans.format_instant(version.updated)}"
        raise StoreError(410, text, location=version.location)
    return StoreResponse(200, version)


def history(database: Database, request: StoreRequest, base: str) -> StoreResponse:
    """Return the versions of one resource, the newest first."""
    row = _existing(database, request)
    query = parse_search(request.type, [pair for pair in request.query if pair[0] in {"_count", "_offset"}])
    versions = database.history(row.key)
    return StoreResponse(200, content=result_bundles.history_bundle(base, request.reference, versions, query))


def unknown_type(resource_type: str) -> StoreError:
    """Return the error for a resource type that R4 does not have."""
    known = ", ".join(sorted(RESOURCE_TYPES))
    return StoreError(
        404, f"HAPI-0302: Unknown resource type '{resource_type}' - Server knows how to handle: [{known}]"
    )


def _existing(database: Database, request: StoreRequest) -> ResourceRow:
    row = database.row(request.type, request.id)
    if row is None or not row.version:
        raise StoreError(404, f"HAPI-2001: Resource {request.reference} is not known")
    return row


def _plan_create(database: Database, request: StoreRequest) -> WritePlan:
    condition = request.if_none_exist
    match = _one_match(database, request, condition, "HAPI-0958: Failed to CREATE") if condition else None
    if match:
        return WritePlan(request, _row_of(match), condition, match)
    return WritePlan(request, database.add_row(request.type), condition)


def _plan_update(database: Database, request: StoreRequest) -> WritePlan:
    row = database.row(request.type, request.id)
    if row:
        _check_version(request, row)
        return WritePlan(request, row)
    if request.id.isdecimal():
        text = (
            f"HAPI-0960: Can not create resource with ID[{request.id}], no resource with this ID exists and clients may"
        )
        raise StoreError(400, f"{text} only assign IDs which contain at least one non-numeric character")
    return WritePlan(request, database.add_row(request.type, request.id))


def _plan_conditional_update(database: Database, request: StoreRequest) -> WritePlan:
    condition = f"{request.type}?{request.query_string}"
    match = _one_match(database, request, condition, "HAPI-0988: Failed to UPDATE")
    if match:
        _check_version(request, _row_of(match))
        return WritePlan(request, _row_of(match), condition)
    return WritePlan(request, database.add_row(request.type), condition)


def _row_of(version: Version) -> ResourceRow:
    return ResourceRow(version.key, version.type, version.id, version.number, deleted=False)


def _one_match(database: Database, request: StoreRequest, condition: str, failure: str) -> Version | None:
    keys = find_matches(database, request.type, condition)
    if len(keys) > 1:
        text = (
            f'{failure} {request.type} with match URL "{condition}" because this search matched {len(keys)} resources'
        )
        raise StoreError(412, text)
    return database.current(keys)[0] if keys else None


def _check_version(request: StoreRequest, row: ResourceRow) -> None:
    if_match = (request.if_match or "").strip().removeprefix("W/").strip('"')
    if if_match and if_match not in {"*", str(row.version)}:
        text = f"HAPI-0550: HAPI-0989: Trying to update {row.reference}/_history/{if_match}"
        raise StoreError(409, f"{text} but this is not the current version")


def _update(database: Database, plan: WritePlan, resource: JsonObject) -> StoreResponse:
    row = plan.row
    current = database.version(row.key, row.version)
    if current and current.body and _comparable(resource, row) == _comparable(decode(current.body), row):
        text = f'Successfully updated resource "{current.location}" with no changes detected.'
        return StoreResponse(200, current, success("SUCCESSFUL_UPDATE_NO_CHANGE", text))
    version = database.write(row, "PUT", resource)
    if plan.condition is None:
        text = f'Successfully updated resource "{version.location}".'
        return StoreResponse(200, version, success("SUCCESSFUL_UPDATE", text))
    text = f'Successfully conditionally updated resource "{version.location}".'
    text = f'{text} Existing resource matched URL "{plan.condition}".'
    return StoreResponse(200, version, success("SUCCESSFUL_UPDATE_WITH_CONDITIONAL_MATCH", text))


def _comparable(resource: JsonObject, row: ResourceRow) -> bytes:
    """Return what two versions without changes have in common: all but the version and its time. 100.0 and 100 differ."""
    meta = resource.get("meta")
    own = {"versionId", "lastUpdated"}
    rest = {name: value for name, value in meta.items() if name not in own} if isinstance(meta, dict) else {}
    return _sorting_encoder.encode({**resource, "id": row.id, "meta": rest})


def _created(plan: WritePlan, version: Version) -> JsonObject:
    location, is_post = f'"{version.location}"', plan.request.method == "POST"
    if plan.condition is None and is_post:
        return success("SUCCESSFUL_CREATE", f"Successfully created resource {location}.")
    if plan.condition is None:
        text = f"Successfully created resource {location} using update as create (ie. create with client assigned ID)."
        return success("SUCCESSFUL_UPDATE_AS_CREATE", text)
    if is_post:
        text = f"Successfully conditionally created resource {location}. No existing resources matched URL"
        return success("SUCCESSFUL_CREATE_NO_CONDITIONAL_MATCH", f'{text} "{plan.condition}".')
    text = (
        f"Successfully conditionally updated resource {location}. Created resource because no existing resource matched"
    )
    return success("SUCCESSFUL_UPDATE_NO_CONDITIONAL_MATCH", f'{text} URL "{plan.condition}".')
