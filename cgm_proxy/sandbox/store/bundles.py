"""Batches and transactions (https://hl7.org/fhir/R4/http.html#transaction), as HAPI carries them out.

A transaction's entries are taken in FHIR's order: deletions, then creates and updates, then reads. All creates and
updates get their places first, so that references among them resolve in any direction, also to what a conditional
create found stored already; references are checked when all is written. As on HAPI, of several entries with the same
ifNoneExist only the first is carried out and answered, and a failing read fails alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import interactions, references
from cgm_proxy.sandbox.store.faults import Refused
from cgm_proxy.sandbox.store.interactions import Plan, Request, StoreResponse
from cgm_proxy.sandbox.store.parameters import RESOURCE_TYPES
from cgm_proxy.sandbox.store.results import instant, status_line
from cgm_proxy.sandbox.store.routes import Server, perform, request_of
from cgm_proxy.sandbox.store.store import Version

_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"})
_PLACEHOLDERS = ("urn:uuid:", "urn:oid:")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the Bundle at its place, and the interaction that it asks for."""

    index: int
    full_url: str
    request: Request

    @property
    def condition(self) -> tuple[str, str] | None:
        """What a conditional create is known by in its Bundle."""
        return (self.request.type, self.request.if_none_exist) if self.request.if_none_exist else None


def process(server: Server, bundle: JsonObject, base: str, *, representation: bool) -> JsonObject:
    """Carry out a batch or transaction and give the response Bundle; raises Refused where the whole of it fails.

    With `representation` each write's answer has the stored resource.
    """
    kind = bundle.get("type", "transaction")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Refused(400, f"HAPI-0527: Unable to process transaction where incoming Bundle.type = {kind}")
    entries = bundle.get("entry", [])
    _check_shape(entries)
    with server.store.atomic():
        answered = _KINDS[kind](server, entries, base)
    listed = [_respond(one, representation=representation) for one in answered]
    head = {"resourceType": "Bundle", "id": str(uuid4()), "type": f"{kind}-response"}
    return head | {"link": [{"relation": "self", "url": base}]} | ({"entry": listed} if listed else {})


def _check_shape(entries: Any) -> None:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refused(
            400, "HAPI-0450: Failed to parse request body as JSON resource. Error was: entry is no list of objects"
        )
    for index, entry in enumerate(entries):
        with _naming(index):
            _check_entry(entry)


def _check_entry(entry: JsonObject) -> None:
    request, resource = entry.get("request", {}), entry.get("resource", {})
    if not isinstance(request, dict) or not isinstance(resource, dict):
        raise Refused(400, "HAPI-0450: Failed to parse request body as JSON resource. Error was: entry is malformed")
    if not all(isinstance(value, str) for value in [*request.values(), entry.get("fullUrl", "")]):
        raise Refused(400, "HAPI-0450: Failed to parse request body as JSON resource. Error was: request is malformed")
    method = request.get("method", "GET")
    if method not in _VERBS:
        text = f'HAPI-1821: [element="method"] Invalid attribute value "{method}": Unknown HTTPVerb code \'{method}\''
        raise Refused(400, f"HAPI-0450: Failed to parse request body as JSON resource. Error was: {text}")
    kind = resource.get("resourceType")
    if resource and (not isinstance(kind, str) or kind not in RESOURCE_TYPES):
        text = f'HAPI-1684: Unknown resource name "{kind}" (this name is not known in FHIR version "R4")'
        raise Refused(400, f"HAPI-0450: Failed to parse request body as JSON resource. Error was: {text}")


@contextmanager
def _naming(index: int) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        refused.entry = index if refused.entry is None else refused.entry
        raise


def _read_entry(index: int, entry: JsonObject) -> Entry:
    asked, resource = entry.get("request", {}), entry.get("resource", {})
    method, url = asked.get("method"), asked.get("url", "")
    if method is None:
        text = f"missing or invalid HTTP Verb specified in Bundle.entry({index}).request.method"
        raise Refused(400, f'HAPI-0529: Transaction bundle entry has {text}. Found value: "null"')
    if method in {"HEAD", "PATCH"}:
        raise Refused(400, f"HAPI-0538: Unable to handle verb in transaction: {method}")
    if method in {"POST", "PUT"} and not resource:
        raise Refused(
            400, f"HAPI-0543: Missing required resource in Bundle.entry[{index}].resource for operation {method}"
        )
    path, _, query = url.partition("?")
    if method == "POST":
        path, query = _type_path(path, resource), ""
    conditions = (asked.get("ifNoneExist"), asked.get("ifMatch"))
    return Entry(index, entry.get("fullUrl", ""), request_of(method, path, query, resource, *conditions))


def _type_path(path: str, resource: JsonObject) -> str:
    """Give the type of the resource, which wins over the entry's URL, as on HAPI."""
    if "://" in path or path.strip("/").count("/") > 1:
        raise Refused(400, f"HAPI-2006: Unable to perform POST, URL provided is invalid: {path}")
    return str(resource["resourceType"])


def _batch(server: Server, entries: list[JsonObject], base: str) -> list[StoreResponse]:
    answers = []
    for index, entry in enumerate(entries):
        try:
            request = _read_entry(index, entry).request
            _refuse_placeholders(request)
            answers.append(perform(server, request, base))
        except Refused as refused:
            answers.append(_refusal(refused))
    return answers


def _transaction(server: Server, bodies: list[JsonObject], base: str) -> list[StoreResponse]:
    entries = []
    for index, body in enumerate(bodies):
        with _naming(index):
            entries.append(_read_entry(index, body))
    answers = _delete(server, [entry for entry in entries if entry.request.method == "DELETE"])
    answers |= _write(server, [entry for entry in entries if entry.request.method in {"POST", "PUT"}])
    _check_deletions(server, [answers[entry.index] for entry in entries if entry.request.method == "DELETE"])
    for entry in entries:
        if entry.request.method == "GET":
            answers[entry.index] = _alone(server, entry, base)
    return [answers[index] for index in sorted(answers)]


def _delete(server: Server, entries: list[Entry]) -> dict[int, StoreResponse]:
    answers = {}
    for entry in entries:
        with _naming(entry.index):
            answers[entry.index] = interactions.remove(server.store, entry.request)
    return answers


def _check_deletions(server: Server, answers: list[StoreResponse]) -> None:
    for answer in answers:
        if answer.version:
            interactions.check_unreferenced(server.store, answer.version)


def _write(server: Server, entries: list[Entry]) -> dict[int, StoreResponse]:
    first, same = _collapse(entries)
    plans = {}
    for entry in first:
        with _naming(entry.index):
            plans[entry.index] = interactions.plan(server.store, entry.request)
    _check_distinct(plans)
    placed = {entry.index: plans[same.get(entry.index, entry.index)] for entry in entries}
    known = _targets(entries, placed)
    resources = {}
    for entry in first:
        with _naming(entry.index):
            resources[entry.index] = references.rewrite(entry.request.resource, _resolver(server, entry, known))
    return _carry_out(server, plans, resources)


def _carry_out(server: Server, plans: dict[int, Plan], resources: dict[int, JsonObject]) -> dict[int, StoreResponse]:
    answers = {}
    for index, planned in plans.items():
        with _naming(index):
            answers[index] = interactions.carry_out(server.store, planned, resources[index])
    for index, planned in plans.items():
        with _naming(index):
            _check_written(server, planned, answers[index].version)
    return answers


def _collapse(entries: list[Entry]) -> tuple[list[Entry], dict[int, int]]:
    """Give the entries without repeated conditional creates, and for each repeated one the index of the first."""
    seen: dict[Any, Entry] = {}
    first: list[Entry] = []
    same: dict[int, int] = {}
    for entry in entries:
        original = seen.setdefault(entry.condition, entry) if entry.condition else entry
        if original is entry:
            first.append(entry)
            continue
        if not (entry.full_url and original.full_url):
            text = (
                "Request contains multiple anonymous entries (Bundle.entry.fullUrl not populated) with conditional URL"
            )
            where = f'{text}: "{entry.request.type}?{entry.request.if_none_exist}".'
            raise Refused(
                400, f"HAPI-2008: Unable to process Transaction - {where} Does transaction request contain duplicates?"
            )
        same[entry.index] = original.index
    return first, same


def _check_distinct(plans: dict[int, Plan]) -> None:
    seen = set()
    for index, planned in plans.items():
        with _naming(index):
            if planned.found is None and planned.slot.key in seen:
                text = f"HAPI-0535: Transaction bundle contains multiple resources with ID: {planned.target()}"
                raise Refused(400, text)
        seen.add(planned.slot.key)


def _targets(entries: list[Entry], placed: dict[int, Plan]) -> dict[str, str]:
    """Give for each fullUrl, and for each id that a POSTed resource brings, the reference of what is stored."""
    known: dict[str, str] = {}
    for entry in entries:
        names = {entry.full_url}
        if entry.request.method == "POST" and "id" in entry.request.resource:
            names.add(f"{entry.request.type}/{entry.request.resource['id']}")
        for name in names - {""}:
            if name in known and name == entry.full_url:
                text = f"HAPI-0534: Transaction bundle contains multiple resources with ID: {name}"
                raise Refused(400, text)
            known.setdefault(name, placed[entry.index].target())
    return known


def _resolver(server: Server, entry: Entry, known: dict[str, str]) -> Callable[[str, str], str]:
    def replace(reference: str, element: str) -> str:
        if reference in known:
            return known[reference]
        if reference.startswith(_PLACEHOLDERS):
            raise _unsatisfied(entry.request, reference, element)
        return interactions.resolved(server.store, reference)

    return replace


def _refuse_placeholders(request: Request) -> None:
    def look(reference: str, element: str) -> str:
        if reference.startswith(_PLACEHOLDERS):
            raise _unsatisfied(request, reference, element)
        return reference

    references.rewrite(request.resource, look)


def _unsatisfied(request: Request, reference: str, element: str) -> Refused:
    text = f"HAPI-0541: Unable to satisfy placeholder ID {reference} found in element named '{element}'"
    return Refused(400, f"{text} within resource of type: {request.type}")


def _check_written(server: Server, planned: Plan, version: Version | None) -> None:
    if version and not planned.found:
        interactions.check_links(server.store, version)
    if not interactions.satisfies(server.store, planned):
        text = (
            f'HAPI-0539: Invalid conditional URL "{planned.condition}". The given resource is not matched by this URL.'
        )
        raise Refused(412, text)


def _alone(server: Server, entry: Entry, base: str) -> StoreResponse:
    try:
        return perform(server, entry.request, base)
    except Refused as refused:
        return _refusal(refused)


def _refusal(refused: Refused) -> StoreResponse:
    return StoreResponse(refused.status, outcome=refused.outcome("exception"))


def _respond(answer: StoreResponse, *, representation: bool) -> JsonObject:
    version, outcome = answer.version, answer.outcome
    if outcome is None:
        return {"resource": version.content if version else answer.content, "response": {"status": status_line(200)}}
    deleted = answer.status == 200 and (version is None or version.body is None)
    response: JsonObject = {"status": status_line(204 if deleted else answer.status)}
    if version:
        response |= {"location": version.location, "etag": str(version.number)}
        response |= {"lastModified": instant(version.updated)} if answer.status == 201 else {}
    shown = {"resource": version.content} if representation and version and version.body else {}
    return shown | {"response": response | {"outcome": outcome}}


_KINDS: dict[str, Callable[[Server, list[JsonObject], str], list[StoreResponse]]] = {
    "batch": _batch,
    "transaction": _transaction,
}
