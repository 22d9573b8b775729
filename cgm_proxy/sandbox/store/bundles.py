"""Batches and transactions (https://hl7.org/fhir/R4/http.html#transaction), as HAPI processes them.

A transaction's entries are processed in FHIR's order: deletions, then creates and updates, then reads. The ids of all
creates and updates are settled first, so that references among them resolve in any direction, also to a resource that a
conditional create found in the store. References are checked after everything is written. As on HAPI, only the first of
several entries with the same ifNoneExist is processed and answered, and a failing read does not fail the others.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import interactions, references
from cgm_proxy.sandbox.store.database import Version
from cgm_proxy.sandbox.store.interactions import StoreRequest, StoreResponse, WritePlan
from cgm_proxy.sandbox.store.outcomes import StoreError, unreadable
from cgm_proxy.sandbox.store.result_bundles import status_line
from cgm_proxy.sandbox.store.routes import StoreServer, parse_request, perform
from cgm_proxy.sandbox.store.search_parameters import RESOURCE_TYPES
from cgm_proxy.sandbox.store.time_spans import format_instant

_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"})
_PLACEHOLDERS = ("urn:uuid:", "urn:oid:")


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """An entry of the Bundle, with its index and the request for its interaction."""

    index: int
    full_url: str
    request: StoreRequest

    @property
    def condition(self) -> tuple[str, str] | None:
        """The type and ifNoneExist of a conditional create, by which repeated ones are recognised."""
        return (self.request.type, self.request.if_none_exist) if self.request.if_none_exist else None


def process(server: StoreServer, bundle: JsonObject, base: str, *, representation: bool) -> JsonObject:
    """Process a batch or transaction and return the response Bundle; raise StoreError if it fails as a whole.

    With `representation` the response to each write contains the stored resource.
    """
    bundle_type = bundle.get("type", "transaction")
    if not isinstance(bundle_type, str) or bundle_type not in _PROCESSORS:
        raise StoreError(400, f"HAPI-0527: Unable to process transaction where incoming Bundle.type = {bundle_type}")
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise unreadable("entry is no list of objects")
    for index, entry in enumerate(entries):
        with _errors_of_entry(index):
            _check_form(entry)
    with server.database.transaction():
        responses = _PROCESSORS[bundle_type](server, entries, base)
    listed = [_response_entry(response, representation=representation) for response in responses]
    head = {"resourceType": "Bundle", "id": str(uuid4()), "type": f"{bundle_type}-response"}
    return head | {"link": [{"relation": "self", "url": base}]} | ({"entry": listed} if listed else {})


def _check_form(entry: JsonObject) -> None:
    request, resource = entry.get("request", {}), entry.get("resource", {})
    if not isinstance(request, dict) or not isinstance(resource, dict):
        raise unreadable("entry is malformed")
    if not all(isinstance(value, str) for value in [*request.values(), entry.get("fullUrl", "")]):
        raise unreadable("request is malformed")
    method = request.get("method", "GET")
    if method not in _VERBS:
        text = f'HAPI-1821: [element="method"] Invalid attribute value "{method}": Unknown HTTPVerb code \'{method}\''
        raise unreadable(text)
    resource_type = resource.get("resourceType")
    if resource and (not isinstance(resource_type, str) or resource_type not in RESOURCE_TYPES):
        text = f'HAPI-1684: Unknown resource name "{resource_type}" (this name is not known in FHIR version "R4")'
        raise unreadable(text)


@contextmanager
def _errors_of_entry(index: int) -> Iterator[None]:
    """Set the index of the entry in a StoreError that the block raises."""
    try:
        yield
    except StoreError as error:
        error.entry = index if error.entry is None else error.entry
        raise


def _parse_entry(index: int, entry: JsonObject) -> BundleEntry:
    request, resource = entry.get("request", {}), entry.get("resource", {})
    method = request.get("method")
    if method is None:
        text = f"missing or invalid HTTP Verb specified in Bundle.entry({index}).request.method"
        raise StoreError(400, f'HAPI-0529: Transaction bundle entry has {text}. Found value: "null"')
    if method in {"HEAD", "PATCH"}:
        raise StoreError(400, f"HAPI-0538: Unable to handle verb in transaction: {method}")
    if method in {"POST", "PUT"} and not resource:
        raise StoreError(
            400, f"HAPI-0543: Missing required resource in Bundle.entry[{index}].resource for operation {method}"
        )
    path, _, query_string = request.get("url", "").partition("?")
    if method == "POST":
        if "://" in path or path.strip("/").count("/") > 1:
            raise StoreError(400, f"HAPI-2006: Unable to perform POST, URL provided is invalid: {path}")
        # The type of the resource wins over the URL, as on HAPI.
        path, query_string = str(resource["resourceType"]), ""
    parsed = replace(
        parse_request(method, path, query_string),
        resource=resource,
        if_none_exist=request.get("ifNoneExist"),
        if_match=request.get("ifMatch"),
    )
    return BundleEntry(index, entry.get("fullUrl", ""), parsed)


def _batch(server: StoreServer, entries: list[JsonObject], base: str) -> list[StoreResponse]:
    responses = []
    for index, entry in enumerate(entries):
        try:
            request = _parse_entry(index, entry).request
            _check_no_placeholders(request)
            responses.append(perform(server, request, base))
        except StoreError as error:
            responses.append(_error_response(error))
    return responses


def _check_no_placeholders(request: StoreRequest) -> None:
    def check(reference: str, element: str) -> str:
        if reference.startswith(_PLACEHOLDERS):
            raise _unsatisfied(request, reference, element)
        return reference

    references.rewrite(request.resource, check)


def _transaction(server: StoreServer, bodies: list[JsonObject], base: str) -> list[StoreResponse]:
    entries = []
    for index, body in enumerate(bodies):
        with _errors_of_entry(index):
            entries.append(_parse_entry(index, body))
    deletions = [entry for entry in entries if entry.request.method == "DELETE"]
    responses = {}
    for entry in deletions:
        with _errors_of_entry(entry.index):
            responses[entry.index] = interactions.delete_unchecked(server.database, entry.request)
    responses |= _write(server, [entry for entry in entries if entry.request.method in {"POST", "PUT"}])
    for entry in deletions:
        if version := responses[entry.index].version:
            interactions.check_unreferenced(server.database, version)
    for entry in entries:
        if entry.request.method == "GET":
            try:
                responses[entry.index] = perform(server, entry.request, base)
            except StoreError as error:
                responses[entry.index] = _error_response(error)
    return [responses[index] for index in sorted(responses)]


def _write(server: StoreServer, entries: list[BundleEntry]) -> dict[int, StoreResponse]:
    """Carry out the creates and updates of a transaction; return the responses by the entry's index."""
    first_of = _repeated(entries)
    first_entries = [entry for entry in entries if entry.index not in first_of]
    plans = {}
    for entry in first_entries:
        with _errors_of_entry(entry.index):
            plans[entry.index] = interactions.plan_write(server.database, entry.request)
    _check_distinct(plans)
    targets = _targets(entries, {entry.index: plans[first_of.get(entry.index, entry.index)] for entry in entries})
    resources = {}
    for entry in first_entries:
        with _errors_of_entry(entry.index):
            resources[entry.index] = references.rewrite(entry.request.resource, _resolver(server, entry, targets))
    responses = {}
    for index, plan in plans.items():
        with _errors_of_entry(index):
            responses[index] = interactions.carry_out(server.database, plan, resources[index])
    for index, plan in plans.items():
        with _errors_of_entry(index):
            _check_written(server, plan, responses[index].version)
    return responses


def _repeated(entries: list[BundleEntry]) -> dict[int, int]:
    """Return the indexes of conditional creates that repeat an earlier one, each with the index of the first."""
    seen: dict[Any, BundleEntry] = {}
    repeated: dict[int, int] = {}
    for entry in entries:
        first = seen.setdefault(entry.condition, entry) if entry.condition else entry
        if first is entry:
            continue
        if not (entry.full_url and first.full_url):
            text = (
                "Request contains multiple anonymous entries (Bundle.entry.fullUrl not populated) with conditional URL"
            )
            text = f'{text}: "{entry.request.type}?{entry.request.if_none_exist}".'
            raise StoreError(
                400, f"HAPI-2008: Unable to process Transaction - {text} Does transaction request contain duplicates?"
            )
        repeated[entry.index] = first.index
    return repeated


def _check_distinct(plans: dict[int, WritePlan]) -> None:
    """Raise StoreError (400) if two entries write the same resource."""
    seen = set()
    for index, plan in plans.items():
        with _errors_of_entry(index):
            if plan.match is None and plan.row.key in seen:
                text = f"HAPI-0535: Transaction bundle contains multiple resources with ID: {plan.row.reference}"
                raise StoreError(400, text)
        seen.add(plan.row.key)


def _targets(entries: list[BundleEntry], plans: dict[int, WritePlan]) -> dict[str, str]:
    """Return the reference of the stored resource for each fullUrl, and for each id that a POSTed resource has."""
    targets: dict[str, str] = {}
    for entry in entries:
        names = {entry.full_url}
        if entry.request.method == "POST" and "id" in entry.request.resource:
            names.add(f"{entry.request.type}/{entry.request.resource['id']}")
        for name in names - {""}:
            if name in targets and name == entry.full_url:
                text = f"HAPI-0534: Transaction bundle contains multiple resources with ID: {name}"
                raise StoreError(400, text)
            targets.setdefault(name, plans[entry.index].row.reference)
    return targets


def _resolver(server: StoreServer, entry: BundleEntry, targets: dict[str, str]) -> Callable[[str, str], str]:
    def replace_reference(reference: str, element: str) -> str:
        if reference in targets:
            return targets[reference]
        if reference.startswith(_PLACEHOLDERS):
            raise _unsatisfied(entry.request, reference, element)
        return interactions.resolve_reference(server.database, reference)

    return replace_reference


def _unsatisfied(request: StoreRequest, reference: str, element: str) -> StoreError:
    text = f"HAPI-0541: Unable to satisfy placeholder ID {reference} found in element named '{element}'"
    return StoreError(400, f"{text} within resource of type: {request.type}")


def _check_written(server: StoreServer, plan: WritePlan, version: Version | None) -> None:
    if version and not plan.match:
        interactions.check_references(server.database, version)
    if not interactions.satisfies_condition(server.database, plan):
        text = f'HAPI-0539: Invalid conditional URL "{plan.condition}". The given resource is not matched by this URL.'
        raise StoreError(412, text)


def _error_response(error: StoreError) -> StoreResponse:
    return StoreResponse(error.status, outcome=error.outcome("exception"))


def _response_entry(response: StoreResponse, *, representation: bool) -> JsonObject:
    version, outcome = response.version, response.outcome
    if outcome is None:
        resource = version.content if version else response.content
        return {"resource": resource, "response": {"status": status_line(200)}}
    deleted = response.status == 200 and (version is None or version.body is None)
    content: JsonObject = {"status": status_line(204 if deleted else response.status)}
    if version:
        content |= {"location": version.location, "etag": str(version.number)}
        content |= {"lastModified": format_instant(version.updated)} if response.status == 201 else {}
    resource_member = {"resource": version.content} if representation and version and version.body else {}
    return resource_member | {"response": content | {"outcome": outcome}}


_PROCESSORS: dict[str, Callable[[StoreServer, list[JsonObject], str], list[StoreResponse]]] = {
    "batch": _batch,
    "transaction": _transaction,
}
