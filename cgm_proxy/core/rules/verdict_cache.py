"""The verdict cache: resources of one shape are judged once.

A submission has thousands of readings that differ only in members which no rule reads: the id, the time, the value. The key
of a verdict is the JSON of the whole resource, in which exactly these members have stand-ins, together with the profiles.
Why no resource can get the verdict of a different one:

1. Only members at the top level of the resource are replaced (and those in its `valueQuantity` and `identifier`), by their
   position in the parsed object and never by a search in text. Everything else is in the key, byte for byte.
2. A value is replaced only if it is a valid primitive of its type by the type's own pattern, and the stand-in is valid for
   the same pattern. Base validity checks nothing else of it.
3. A value is replaced only if static analysis (`static_analysis.py`) of all rules of the profiles, and of all invariants on
   the types above it, finds no expression that reads it. If a hospital has a rule on the value, the value is in the key. The
   stand-in of a time has as many characters as the time, because US Core has a rule on that.
4. The resources that references name are part of the key: each reference that was resolved is resolved again, and must give
   the same content, or again nothing.
5. The text after a `#` may be the id of an element or resource: if there is a `#`, the resource keeps its own id.
6. Messages may quote a replaced value. A verdict with issues is cached only if the stand-ins give the same issues.

The cache is bounded in bytes, with keys and contents; the oldest verdict is dropped first.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from threading import Lock
from typing import Any

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.datatypes import URI_SYSTEMS
from cgm_proxy.core.r4.primitives import fault
from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.rules.static_analysis import Analysis, ElementRead

#: A full timestamp whose day its month has in every year; the 29th of February stays in the key.
TIMESTAMP = re.compile(
    r"(?!0000)\d{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?"
    r"(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d)",
    re.ASCII,
)
#: An identifier's value on which R4 has no rule: letters, digits and the usual separators.
PLAIN_IDENTIFIER = re.compile(r"[\w:/.\-|+=@!$%&*(),;~][\w:/.\-|+=@!$%&*(),;~# ]*")
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
#: Default size of the cache (bytes); a shape takes about 1 kB.
CACHE_BYTES = 16 * 2**20
#: Most bytes that a parsed value takes for each byte of its JSON: `0.1,` becomes a Decimal and an entry of a list.
PARSED_BYTES = 30
#: Shapes with issues that are recorded when they are first seen; each takes about 100 bytes.
MOST_SEEN = 20_000
#: Largest resource (bytes of JSON) that is cached; larger ones, such as a PDF, seldom repeat.
LARGEST_SHAPE = 32 * 2**10
_ZEROS = str.maketrans("123456789", "000000000")
#: Members of a resource, each with the function that returns its stand-in, or None for a value that must stay.
StandIns = tuple[tuple[str, Callable[[Any], Any]], ...]
encode = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True, slots=True)
class CachedVerdict:
    """A verdict with the references that were resolved for it: each with the resource it named and the resource's JSON."""

    issues: tuple[Issue, ...]
    looked_up: tuple[tuple[str, JsonObject | None, bytes], ...]

    def is_valid(self, resolve: ReferenceResolver) -> bool:
        """Whether each reference still names the same resource with the same content."""
        for reference, before, encoded in self.looked_up:
            now = resolve(reference)
            if now is not before and (now is None or before is None or encode(now) != encoded):
                return False
        return True


def _timestamp(value: Any) -> Any:
    """Return a stand-in of the same length, or None if the value is no full timestamp."""
    if type(value) is not str or not TIMESTAMP.fullmatch(value):
        return None
    return "1000-10-10T10:10:10" + (value[19:].translate(_ZEROS) if len(value) > 20 else "Z")


def _identity(value: Any) -> Any:
    return "0" if type(value) is str and ID.fullmatch(value) else None


def _number(value: Any) -> Any:
    # The stand-in is not 0: 0e0 is no valid decimal, but its JSON here is 0.
    valid = type(value) is int or (type(value) is Decimal and not fault("decimal", value))
    return 1 if valid else None


def _in_quantity(value: Any) -> Any:
    if type(value) is not dict or _number(value.get("value")) is None:
        return None
    return {**value, "value": 1}


def _in_identifiers(value: Any) -> Any:
    if type(value) is not list or not all(type(item) is dict for item in value):
        return None
    return [_in_identifier(item) for item in value]


def _in_identifier(item: JsonObject) -> JsonObject:
    text = item.get("value")
    # A text that begins with # could refer to a contained resource (dom-3); some systems require URIs as values.
    plain = type(text) is str and PLAIN_IDENTIFIER.fullmatch(text) and item.get("system") not in URI_SYSTEMS
    return {**item, "value": "0"} if plain else item


@dataclass(frozen=True, slots=True)
class Replaceable:
    """A member that may be replaced, the elements of which an expression must read one to see it, and its stand-in."""

    member: str
    reads: tuple[tuple[str, str], ...]
    stand_in: Callable[[Any], Any]


#: Members that are replaced, by resource type.
REPLACEABLE = {
    "Observation": (
        Replaceable("id", (("Resource", "id"), ("Observation", "id")), _identity),
        Replaceable("effectiveDateTime", (("Observation", "effective[x]"),), _timestamp),
        Replaceable("issued", (("Observation", "issued"),), _timestamp),
        Replaceable("valueQuantity", (("Observation", "value[x]"), ("Quantity", "value")), _in_quantity),
        Replaceable("identifier", (("Observation", "identifier"), ("Identifier", "value")), _in_identifiers),
    )
}


def stand_ins(type_: str, analyses: Iterable[Analysis]) -> StandIns:
    """Return the members of a type that no expression reads, with their stand-ins; none if one may read everything.

    `analyses` is not consumed if the type has no members that may be replaced.
    """
    if type_ not in REPLACEABLE:
        return ()
    listed = list(analyses)
    if any(analysis.everything for analysis in listed):
        return ()
    read = {(r.type, r.element) for a in listed for r in a.reads if not _reads_length_of_time(r)}
    return tuple((r.member, r.stand_in) for r in REPLACEABLE[type_] if not _is_read(r, read))


def _reads_length_of_time(read: ElementRead) -> bool:
    return read.how == "length" and read.element == "effective[x]"


def _is_read(replaceable: Replaceable, read: set[tuple[str, str]]) -> bool:
    return any(pair in read or ("*", pair[1].removesuffix("[x]")) in read for pair in replaceable.reads)


class VerdictCache:
    """Verdicts by key, bounded in bytes. Safe for several threads."""

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._verdicts: dict[Any, CachedVerdict] = {}
        self._seen: dict[int, None] = {}
        self._size = self._room = size
        self._lock = Lock()

    def get(self, key: Any, resolve: ReferenceResolver) -> tuple[Issue, ...] | None:
        """Return the cached issues of a key, if its references name the same resources; otherwise None."""
        found = self._verdicts.get(key)
        return found.issues if found is not None and found.is_valid(resolve) else None

    def put(self, key: Any, issues: tuple[Issue, ...], looked_up: Iterable[tuple[str, JsonObject | None]]) -> None:
        """Cache a verdict; drop the oldest ones to make room."""
        listed = tuple((text, found, b"" if found is None else encode(found)) for text, found in looked_up)
        verdict = CachedVerdict(issues, listed)
        if _size(key, verdict) > self._size:
            return
        with self._lock:
            self._drop(key)
            self._verdicts[key] = verdict
            self._room -= _size(key, verdict)
            while self._room < 0:
                self._drop(next(iter(self._verdicts)))

    def seen(self, key: Any) -> bool:
        """Whether a key was seen before; it is recorded as seen.

        Caching the verdict of a shape with issues takes twice the work of a verdict, so it is done only for shapes that
        repeat. The record is bounded; it may have lost an old key.
        """
        digest = hash(key)
        with self._lock:
            known = digest in self._seen
            self._seen.pop(digest, None)
            if not known:
                self._seen[digest] = None
                if len(self._seen) > MOST_SEEN:
                    del self._seen[next(iter(self._seen))]
            return known

    def _drop(self, key: Any) -> None:
        if (found := self._verdicts.pop(key, None)) is not None:
            self._room += _size(key, found)

    def __len__(self) -> int:
        return len(self._verdicts)


def _size(key: Any, verdict: CachedVerdict) -> int:
    issues = sum(len(issue.text) + 200 for issue in verdict.issues)
    looked_up = sum((1 + PARSED_BYTES) * len(encoded) + len(text) for text, _, encoded in verdict.looked_up)
    return 500 + len(key[-1]) + issues + looked_up


def shape(resource: JsonObject, replaced: StandIns) -> tuple[bytes, JsonObject]:
    """Return the shape of a resource: its JSON with stand-ins for members that no rule reads, and the same as an object."""
    plain = resource.copy()
    for member, stand_in in replaced:
        if member in plain:
            replacement = stand_in(plain[member])
            if replacement is not None:
                plain[member] = replacement
    encoded = encode(plain)
    if b"#" not in encoded or "id" not in plain:
        return encoded, plain
    plain["id"] = resource["id"]
    return encode(plain), plain
