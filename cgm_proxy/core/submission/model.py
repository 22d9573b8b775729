"""A submission and its entries, built from a parsed document.

A structural fault of one entry is an issue of that entry; a fault of the whole Bundle raises `RequestRefused`.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from cgm_proxy.core.codec.json_body import decode, decode_text, encode
from cgm_proxy.core.issues import Issue, refuse
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.reference_scope import literal_type
from cgm_proxy.core.submission.dialects import Dialect

T = TypeVar("T")

#: How a submission is made: a tagged batch or transaction, the operation, or the create of one resource.
Interaction = Literal["batch", "transaction", "operation", "create"]

#: `Bundle.type` values that each endpoint accepts, the usual one first.
BUNDLE_TYPES: dict[str, tuple[str, ...]] = {"base": ("batch", "transaction"), "operation": ("transaction", "batch")}

#: A literal reference in a compact serialisation. An unescaped `"reference":` is always a member's name there. The number of
#: escapes is limited, and the quantifiers are possessive, because each repetition would take 140 bytes otherwise.
REFERENCE_MEMBER = re.compile(rb'"reference":"([^"\\]*+(?:\\.[^"\\]*+){0,255}+)"')
REFERENCE_START = b'"reference":"'

#: Names of JSON members that may appear in an issue's path; a submitter's made-up name is not echoed in a response.
ELEMENT_NAME = re.compile(r"[A-Za-z]{1,64}")

#: The form of a resource type's name in a RESTful URL.
RESOURCE_TYPE = re.compile(r"[A-Z][a-z][A-Za-z]+")

#: A relative reference to a patient, with R4's logical id (https://hl7.org/fhir/R4/datatypes.html#id).
PATIENT_REFERENCE = re.compile(r"Patient/[A-Za-z0-9\-.]{1,64}")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a submission.

    Its fields form no reference cycles, so it needs no garbage collection (`gc=False`).
    """

    index: int
    """The entry's position in `Bundle.entry`, from 0."""
    encoded: bytes
    """The resource, parsed and serialised again compactly."""
    type: str
    """The resource's type, or "" if it has none."""
    id: str | None
    """The resource's id in the submission."""
    full_url: str | None
    request: JsonObject
    subject: str | None
    """The patient whom the resource is about, as `Patient/id`; None if it names none (a Device) or none on this server."""
    references: tuple[str, ...]
    """The literal references in the resource."""
    issues: tuple[Issue, ...] = ()
    """Structural faults of the entry."""

    @property
    def resource(self) -> JsonObject:
        """The resource, parsed again on each access: parsed, thousands of them would take six times the memory."""
        return decode(self.encoded)


class ParsedEntries:
    """A Bundle's entries that were read one by one, so that the parsed entries are not all in memory at once.

    - `entries`: the first ones, at most one more than a submission may have.
    - `outlines`: each distinct combination of `request`, `resourceType`, `meta` and `code`, once, in the form of an entry.
    """

    __slots__ = ("entries", "outlines")

    def __init__(self, entries: list[Entry], outlines: list[Any]) -> None:
        self.entries = entries
        self.outlines = outlines


@dataclass(frozen=True, slots=True)
class Submission:
    """A parsed submission."""

    dialect: Dialect
    interaction: Interaction
    entries: tuple[Entry, ...]
    patient: str | None
    """The patient whom most entries are about, as `Patient/id`."""
    internal_references: Mapping[str, int]
    """The references between entries: each with the index of the entry that it means."""
    outer_references: Mapping[str, str]
    """The other references: each with its form relative to this server, if it leads to this server."""

    @property
    def atomic(self) -> bool:
        """Whether one refused entry refuses the whole submission.

        Only a tagged transaction is atomic; the operation may store a subset of its entries (guide, 1.0.0).
        """
        return self.interaction == "transaction"

    def fingerprint(self) -> str:
        """Return a SHA-256 of all resources, by which a submission that is sent again is recognised."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(entry.encoded)
        return digest.hexdigest()

    def referenced_entries(self, entry: Entry) -> AbstractSet[int]:
        """Return the indices of the entries that `entry` references."""
        if not self.internal_references:
            return frozenset()
        return {self.internal_references[name] for name in entry.references if name in self.internal_references}


class EntryLimits(Protocol):
    """How many entries a submission may have; implemented by `settings.loading.LimitSettings`."""

    @property
    def entries(self) -> int:
        """The limit for any submission."""

    @property
    def atomic_entries(self) -> int:
        """The limit for an atomic submission."""


def operation_bundle(document: JsonObject) -> JsonObject:
    """Return the Bundle that the operation was called with: the document, or the parameter `resource` in it.

    Raises `RequestRefused` (400) if there is no Bundle, or several of them, because only one would be stored.
    """
    candidate: Any = document
    if document.get("resourceType") == "Parameters":
        parameters = objects(document.get("parameter"))
        resources = [each.get("resource") for each in parameters if each.get("name") == "resource"]
        candidate = resources[0] if len(resources) == 1 else None
    if not isinstance(candidate, dict) or candidate.get("resourceType") != "Bundle":
        text = (
            "the body holds no Bundle, or several; $submit-cgm-bundle expects one Bundle of type transaction: "
            'send it as the body, or in a Parameters resource as its only parameter "resource"'
        )
        raise refuse(400, "bundle-expected", text, code="structure")
    return candidate


def submission_from_bundle(
    bundle: JsonObject, dialect: Dialect, endpoint: str, localize: Callable[[str], str], limits: EntryLimits
) -> Submission:
    """Return the submission in a Bundle that was posted to `endpoint` ("base" or "operation").

    `localize` turns an absolute reference to this server into a relative one and leaves others unchanged.
    Raises `RequestRefused`: 400 for a wrong type, a missing or empty list of entries, 413 for too many entries.
    """
    bundle_type, items = bundle.get("type"), bundle.get("entry")
    if bundle_type not in BUNDLE_TYPES[endpoint]:
        text = (
            f'Bundle.type is {preview(bundle_type)}; a CGM submission to this endpoint must be a "{BUNDLE_TYPES[endpoint][0]}" '
            "with a request in each entry"
        )
        raise refuse(400, "bundle-type", text, code="value")
    if not isinstance(items, ParsedEntries | list | None):
        raise refuse(
            400, "bundle-entry", f"Bundle.entry is {preview(items)}; it must be a list of entries", code="structure"
        )
    if isinstance(items, ParsedEntries):
        entries = items.entries
    else:
        entries = [parse_entry(index, item, localize) for index, item in enumerate(items or ())]
    if not entries:
        raise refuse(400, "bundle-empty", "the submission has no entries; send at least one", code="required")
    interaction: Interaction = "operation" if endpoint == "operation" else bundle_type
    limit = limits.atomic_entries if interaction == "transaction" else limits.entries
    if len(entries) > limit:
        text = (
            f"the submission has more than {limit:,} entries, the most that this receiver accepts in a {bundle_type}; "
            "split it into several submissions"
        )
        raise refuse(413, "too-many-entries", text, code="too-costly")
    subjects = Counter(entry.subject for entry in entries if entry.subject)
    patient = subjects.most_common(1)[0][0] if subjects else None
    unique = _refuse_repeated_full_urls(entries)
    return Submission(dialect, interaction, unique, patient, *divide_references(unique, localize))


def submission_from_resource(
    resource: JsonObject, dialect: Dialect, localize: Callable[[str], str], if_none_exist: str | None
) -> Submission:
    """Return the submission of one resource that is created on its own."""
    request = {"method": "POST", "url": resource.get("resourceType")}
    if if_none_exist is not None:
        request["ifNoneExist"] = if_none_exist
    entry = parse_entry(0, {"resource": resource, "request": request}, localize)
    return Submission(dialect, "create", (entry,), entry.subject, *divide_references([entry], localize))


def parse_entry(index: int, item: Any, localize: Callable[[str], str], previous: Entry | None = None) -> Entry:
    """Return the entry in an item of `Bundle.entry`; structural faults become its issues.

    Values that are equal to those of the `previous` entry are shared with it, to save memory.
    """
    fields = item if isinstance(item, dict) else {}
    resource, request, full_url = fields.get("resource"), fields.get("request"), fields.get("fullUrl")
    members = resource if isinstance(resource, dict) else {}
    resource_type, resource_id = members.get("resourceType"), members.get("id")
    encoded = encode(members)
    references = REFERENCE_MEMBER.findall(encoded)
    sound = (
        isinstance(resource_type, str)
        and isinstance(request, dict)
        and (full_url is None or (isinstance(full_url, str) and not _names_another_type(full_url, resource_type)))
        and len(references) == encoded.count(REFERENCE_START)
    )
    return Entry(
        index=index,
        encoded=encoded,
        type=_shared(previous.type if previous else None, resource_type if isinstance(resource_type, str) else ""),
        id=resource_id if isinstance(resource_id, str) else None,
        full_url=full_url if isinstance(full_url, str) else None,
        request=request if isinstance(request, dict) else {},
        subject=_shared(previous.subject if previous else None, _subject(members, localize)),
        references=_shared(previous.references if previous else None, _distinct(references)),
        issues=() if sound else tuple(_structural_issues(item, resource, request, full_url, encoded)),
    )


def _shared(previous: T | None, value: T) -> T:
    return previous if previous == value and previous is not None else value


def _subject(resource: JsonObject, localize: Callable[[str], str]) -> str | None:
    element = resource.get("patient" if resource.get("resourceType") == "Device" else "subject")
    reference = element.get("reference") if isinstance(element, dict) else None
    local = localize(reference) if isinstance(reference, str) else ""
    return local if PATIENT_REFERENCE.fullmatch(local) else None


def _structural_issues(item: Any, resource: Any, request: Any, full_url: Any, encoded: bytes) -> Iterator[Issue]:
    if not isinstance(item, dict):
        text = f"the entry is {preview(item)}; it must be an object with a resource and a request"
        yield Issue("entry-object", text, code="structure")
        return
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        text = "the entry has no resource with a resourceType; add one"
        yield Issue("entry-resource", text, "resource", code="required")
    if not isinstance(request, dict):
        text = 'the entry has no request; add one with the method "POST" and the resource\'s type as url'
        yield Issue("entry-request", text, "request", code="required")
    if full_url is not None and not isinstance(full_url, str):
        text = f"fullUrl is {preview(full_url)}; it must be a string"
        yield Issue("entry-full-url", text, "fullUrl", code="value")
    elif full_url and isinstance(resource, dict) and _names_another_type(full_url, resource.get("resourceType")):
        text = f"fullUrl is {preview(full_url)}, the URL of a resource of another type; give the entry a urn:uuid of its own"
        yield Issue("entry-full-url", text, "fullUrl", code="value")
    if len(REFERENCE_MEMBER.findall(encoded)) != encoded.count(REFERENCE_START):
        text = "a reference has hundreds of quotes, backslashes or control characters; it must be a URL, which has none"
        yield Issue("entry-reference", text, "resource", code="value")


def _names_another_type(full_url: str, resource_type: Any) -> bool:
    """Whether a fullUrl is a RESTful URL, absolute or relative, of another type of resource."""
    if full_url.startswith("urn:"):
        return False
    named = literal_type(full_url)
    return named is not None and named != resource_type and RESOURCE_TYPE.fullmatch(named) is not None


def _refuse_repeated_full_urls(entries: Collection[Entry]) -> tuple[Entry, ...]:
    """Add an issue to each entry whose fullUrl another entry has as well."""
    counts = Counter(entry.full_url for entry in entries)
    if all(count == 1 or url is None for url, count in counts.items()):
        return tuple(entries)
    checked = []
    for entry in entries:
        if entry.full_url and counts[entry.full_url] > 1:
            text = (
                f"several entries have the fullUrl {preview(entry.full_url)}, so references to it are ambiguous; "
                "give each entry a fullUrl of its own"
            )
            issue = Issue("entry-full-url-unique", text, "fullUrl", code="duplicate")
            checked.append(msgspec.structs.replace(entry, issues=(*entry.issues, issue)))
        else:
            checked.append(entry)
    return tuple(checked)


def _distinct(references: Iterable[bytes]) -> tuple[str, ...]:
    """Return distinct literal references, given as in JSON, except those to contained resources."""
    return tuple([unescape(text) for text in dict.fromkeys(references) if text[:1] != b"#"])


def unescape(text: bytes) -> str:
    """Return the string of a JSON string's content, without its quotes."""
    return decode_text(b'"%b"' % text) if b"\\" in text else text.decode()


def index_by_reference(entries: Iterable[Entry]) -> dict[str, int]:
    """Map each reference that can mean an entry to the entry's index.

    These are its fullUrl, the `Type/id` at the end of its fullUrl, and its type and id in the submission. A reference in a
    Bundle means an entry before it means a stored resource (https://hl7.org/fhir/R4/bundle.html#references). A fullUrl of
    another type of resource is no name of the entry: above all, no entry is called like a patient.
    """
    found: dict[str, int] = {}
    for entry in entries:
        if entry.id is not None:
            found.setdefault(f"{entry.type}/{entry.id}", entry.index)
        if entry.full_url and not _names_another_type(entry.full_url, entry.type):
            found[entry.full_url] = entry.index
            if (relative := "/".join(entry.full_url.rsplit("/", 2)[1:])).startswith(f"{entry.type}/"):
                found.setdefault(relative, entry.index)
    return found


def divide_references(
    entries: Collection[Entry], localize: Callable[[str], str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Map the references that mean an entry to that entry's index, and the others to their form relative to this server.

    An absolute reference to this server means what the relative one means.
    """
    indices = index_by_reference(entries)
    internal: dict[str, int] = {}
    outer: dict[str, str] = {}
    for reference in dict.fromkeys(reference for entry in entries for reference in entry.references):
        relative = localize(reference)
        index = indices.get(reference, indices.get(relative))
        if index is None:
            outer[reference] = relative
        else:
            internal[reference] = index
    return internal, outer


def reference_paths(entry: Entry) -> dict[str, str]:
    """Map each literal reference to the path of its first occurrence, such as `Observation.hasMember[2].reference`."""
    paths: dict[str, str] = {}
    for reference, path in _occurrences(entry.resource, entry.type):
        paths.setdefault(reference, path)
    return paths


def _occurrences(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield each literal reference in a JSON value with its path."""
    if isinstance(value, dict):
        if isinstance(reference := value.get("reference"), str):
            yield reference, f"{path}.reference"
        for name, member in value.items():
            if ELEMENT_NAME.fullmatch(name):
                yield from _occurrences(member, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _occurrences(item, f"{path}[{index}]")


def preview(value: Any) -> str:
    """Return a value as JSON for a message, cut to 60 characters; a missing value is `null`."""
    text = encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
