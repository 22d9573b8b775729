"""A submission and its entries, made from a parsed document; structural faults of an entry are values."""

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
from cgm_proxy.core.submission.dialects import Dialect

T = TypeVar("T")

Interaction = Literal["batch", "transaction", "operation", "create"]

#: `Bundle.type` that each way of submitting takes.
BUNDLE_TYPES: dict[str, tuple[str, ...]] = {"base": ("batch", "transaction"), "operation": ("transaction", "batch")}

#: What stands in a canonical serialisation for a Reference: an unescaped `"reference":` can only be a member's name.
REFERENCE_MEMBER = re.compile(rb'"reference":"([^"\\]*(?:\\.[^"\\]*)*)"')

#: An element's name in JSON; whoever makes up others must not find them in an answer.
ELEMENT_NAME = re.compile(r"[A-Za-z]{1,64}")

#: R4's logical id (https://hl7.org/fhir/R4/datatypes.html#id).
PATIENT_REFERENCE = re.compile(r"Patient/[A-Za-z0-9\-.]{1,64}")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a submission. `encoded` is its resource, parsed and serialised compactly.

    The collector need not look at what is made of text alone.
    """

    index: int
    encoded: bytes
    type: str
    """The resource's type, or "" where it has none."""
    id: str | None
    """The resource's id in the submission."""
    full_url: str | None
    request: JsonObject
    subject: str | None
    """The patient whom it is about, as `Patient/id`; None where it names none (a Device) or none that can be read."""
    references: tuple[str, ...]
    issues: tuple[Issue, ...] = ()

    @property
    def resource(self) -> JsonObject:
        """The resource, parsed again: to keep thousands of them parsed takes more time than that, and six times the memory."""
        return decode(self.encoded)


class ParsedEntries:
    """A Bundle's entries where they were read one after another, none of them kept as it was parsed.

    `entries` are the first ones, as many as a submission may have and one more; `outlines` show what the entries ask for and of
    what kind and code their resources are, once for all that are alike.
    """

    __slots__ = ("entries", "outlines")

    def __init__(self, entries: list[Entry], outlines: list[Any]) -> None:
        self.entries = entries
        self.outlines = outlines


@dataclass(frozen=True, slots=True)
class Submission:
    """A parsed submission. Only a tagged `transaction` is atomic; the operation stores a subset (guide, 1.0.0)."""

    dialect: Dialect
    interaction: Interaction
    entries: tuple[Entry, ...]
    patient: str | None
    """The patient whom most entries are about, as `Patient/id`."""
    internal_references: Mapping[str, int]
    """The references between its entries: each with the index of the entry that it means."""

    @property
    def atomic(self) -> bool:
        """Whether one refused entry refuses all."""
        return self.interaction == "transaction"

    def fingerprint(self) -> str:
        """Give a hash of all its resources, to know it by if it is sent again."""
        found = hashlib.sha256()
        for entry in self.entries:
            found.update(entry.encoded)
        return found.hexdigest()

    def referenced_entries(self, entry: Entry) -> AbstractSet[int]:
        """Give the indices of the entries that an entry references."""
        if not self.internal_references:
            return frozenset()
        return {
            self.internal_references[reference]
            for reference in entry.references
            if reference in self.internal_references
        }


def operation_bundle(document: JsonObject) -> JsonObject:
    """Take the Bundle out of a Parameters resource, where the operation was called with one.

    Raises `RequestRefused` (400) where neither is a Bundle, and where there are several: only one would be stored.
    """
    found: Any = document
    if document.get("resourceType") == "Parameters":
        given = [one.get("resource") for one in objects(document.get("parameter")) if one.get("name") == "resource"]
        found = given[0] if len(given) == 1 else None
    if not isinstance(found, dict) or found.get("resourceType") != "Bundle":
        text = '$submit-cgm-bundle takes one Bundle of type transaction, alone or as the parameter "resource"'
        raise refuse(400, "bundle-expected", text, code="structure")
    return found


class EntryLimits(Protocol):
    """How many entries a submission may have; `settings.Limits` is one."""

    @property
    def entries(self) -> int:
        """Most entries of any submission."""

    @property
    def atomic_entries(self) -> int:
        """Most entries of one that is stored whole or not at all."""


def submission_from_bundle(
    bundle: JsonObject, dialect: Dialect, target: str, localize: Callable[[str], str], limits: EntryLimits
) -> Submission:
    """Make the submission of a Bundle that was posted to `target` ("base" or "operation").

    `localize` turns an absolute reference to this server into a relative one and leaves any other as it is.
    Raises `RequestRefused`: 400 for a wrong type, no entries or no list of them, 413 for too many.
    """
    kind = bundle.get("type")
    if kind not in BUNDLE_TYPES[target]:
        wanted = BUNDLE_TYPES[target][0]
        text = f'Bundle.type is {preview(kind)}; a CGM submission posted here is a "{wanted}", with a request in each entry'
        raise refuse(400, "bundle-type", text, code="value")
    found = bundle.get("entry")
    if not isinstance(found, ParsedEntries | list | None):
        raise refuse(
            400, "bundle-entry", f"Bundle.entry is {preview(found)}; it wants a list of entries", code="structure"
        )
    made = found.entries if isinstance(found, ParsedEntries) else list(_made(found, localize))
    if not made:
        raise refuse(400, "bundle-empty", "the submission has no entries; send at least one", code="required")
    limit = limits.atomic_entries if target == "base" and kind == "transaction" else limits.entries
    if len(made) > limit:
        text = (
            f"the submission has more than {limit:,} entries, which is what this receiver takes in a {kind}; split it"
        )
        raise refuse(413, "too-many-entries", text, code="too-costly")
    entries = _unique(tuple(made))
    way: Interaction = "operation" if target == "operation" else kind
    return Submission(dialect, way, entries, _patient(entries), internal_references(entries))


def submission_from_resource(
    resource: JsonObject, dialect: Dialect, localize: Callable[[str], str], if_none_exist: str | None
) -> Submission:
    """Make the submission of one resource that is created by itself."""
    request = {"method": "POST", "url": resource.get("resourceType")}
    if if_none_exist is not None:
        request["ifNoneExist"] = if_none_exist
    made = parse_entry(0, {"resource": resource, "request": request}, localize)
    return Submission(dialect, "create", (made,), made.subject, internal_references([made]))


def _made(found: list[Any] | None, localize: Callable[[str], str]) -> Iterable[Entry]:
    return (parse_entry(index, item, localize) for index, item in enumerate(found or ()))


def parse_entry(index: int, item: Any, localize: Callable[[str], str], before: Entry | None = None) -> Entry:
    """Make one entry; what is structurally wrong with it becomes its issues.

    What it has in common with the one `before` is kept once.
    """
    fields = item if isinstance(item, dict) else {}
    resource, request, full_url = fields.get("resource"), fields.get("request"), fields.get("fullUrl")
    known = resource if isinstance(resource, dict) else {}
    kind, name = known.get("resourceType"), known.get("id")
    encoded = encode(known)
    sound = isinstance(kind, str) and isinstance(request, dict) and (full_url is None or isinstance(full_url, str))
    return Entry(
        index=index,
        encoded=encoded,
        type=_kept(before.type if before else None, kind if isinstance(kind, str) else ""),
        id=name if isinstance(name, str) else None,
        full_url=full_url if isinstance(full_url, str) else None,
        request=request if isinstance(request, dict) else {},
        subject=_kept(before.subject if before else None, _subject(known, localize)),
        references=_kept(before.references if before else None, literal_references(encoded)),
        issues=() if sound else tuple(_structure(item, resource, request, full_url)),
    )


def _kept(before: T | None, found: T) -> T:
    return before if before == found and before is not None else found


def literal_references(encoded: bytes) -> tuple[str, ...]:
    """List the literal references in a canonical serialisation, without those to contained resources and without repeats."""
    found = dict.fromkeys(REFERENCE_MEMBER.findall(encoded))
    return tuple([unescape(text) for text in found if text[:1] != b"#"])


def reference_paths(entry: Entry) -> dict[str, str]:
    """Map each literal reference to the path of the first element that makes it: `Observation.hasMember[2].reference`."""
    found: dict[str, str] = {}
    for reference, path in _referring(entry.resource, entry.type):
        found.setdefault(reference, path)
    return found


def _referring(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("reference"), str):
            yield reference, f"{path}.reference"
        for name, part in value.items():
            if ELEMENT_NAME.fullmatch(name):
                yield from _referring(part, f"{path}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _referring(part, f"{path}[{index}]")


def unescape(text: bytes) -> str:
    """Give the string that stands between quotes in a serialisation."""
    return decode_text(b'"%b"' % text) if b"\\" in text else text.decode()


def index_by_reference(entries: Iterable[Entry]) -> dict[str, int]:
    """Map each reference by which an entry can be meant to its index: its fullUrl, and its type and id in the submission.

    Inside a Bundle a reference means an entry before it means what is stored (https://hl7.org/fhir/R4/bundle.html#references).
    """
    found: dict[str, int] = {}
    for entry in entries:
        if entry.id is not None:
            found.setdefault(f"{entry.type}/{entry.id}", entry.index)
        if entry.full_url:
            found[entry.full_url] = entry.index
            if (place := "/".join(entry.full_url.rsplit("/", 2)[1:])).startswith(f"{entry.type}/"):
                found.setdefault(place, entry.index)
    return found


def internal_references(entries: Collection[Entry]) -> dict[str, int]:
    """Map the references between entries to the index of the entry that each means."""
    named = index_by_reference(entries)
    return {r: named[r] for r in {r for entry in entries for r in entry.references} if r in named}


def _structure(item: Any, resource: Any, request: Any, full_url: Any) -> list[Issue]:
    if not isinstance(item, dict):
        return [Issue("entry-object", f"the entry is {preview(item)}; it wants an object", code="structure")]
    issues = []
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        issues.append(
            Issue(
                "entry-resource", "the entry has no resource with a resourceType; add one", "resource", code="required"
            )
        )
    if not isinstance(request, dict):
        issues.append(
            Issue(
                "entry-request",
                "the entry has no request; add method POST and the type as url",
                "request",
                code="required",
            )
        )
    if full_url is not None and not isinstance(full_url, str):
        issues.append(
            Issue("entry-full-url", f"fullUrl is {preview(full_url)}; it wants a string", "fullUrl", code="value")
        )
    return issues


def _unique(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    count = Counter(entry.full_url for entry in entries)
    if all(seen == 1 or url is None for url, seen in count.items()):
        return entries
    return tuple(_refuse_twin(entry) if entry.full_url and count[entry.full_url] > 1 else entry for entry in entries)


def _refuse_twin(entry: Entry) -> Entry:
    text = f"fullUrl {preview(entry.full_url)} stands in several entries, so references to it are ambiguous; make each unique"
    issue = Issue("entry-full-url-unique", text, "fullUrl", code="duplicate")
    return msgspec.structs.replace(entry, issues=(*entry.issues, issue))


def _subject(resource: JsonObject, localize: Callable[[str], str]) -> str | None:
    element = resource.get("patient" if resource.get("resourceType") == "Device" else "subject")
    reference = element.get("reference") if isinstance(element, dict) else None
    local = localize(reference) if isinstance(reference, str) else ""
    return local if PATIENT_REFERENCE.fullmatch(local) else None


def _patient(entries: tuple[Entry, ...]) -> str | None:
    subjects = Counter(entry.subject for entry in entries if entry.subject)
    return subjects.most_common(1)[0][0] if subjects else None


def preview(value: Any) -> str:
    """Show a value in a message, in JSON's words and cut short; what isn't there is null."""
    text = encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
