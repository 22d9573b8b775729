"""Once a shape: a verdict is remembered by what decided it.

A submission has thousands of readings that differ only in leaves which no rule reads: the id, the instant, the value. The
key of a verdict is the resource's whole JSON in which exactly those leaves are replaced by stand-ins, together with the
profiles. Why this borrows no other resource's verdict:

1. A leaf is replaced only where it stands in the resource's own top level (or in its `valueQuantity` or `identifier`), by
   position in the parsed object, never by searching text. All else stays in the key, byte for byte.
2. A leaf is replaced only when it is a valid primitive of its type by its own pattern, and a stand-in is valid for the same
   pattern. Base validity asks nothing else of it.
3. A leaf is replaced only if static analysis (`core/analysis.py`) of every rule of the profiles, and of every invariant
   on the types above the leaf, finds no expression that reads it. A hospital's rule on the value so takes the value into the
   key. A stand-in for a time keeps the number of characters, because US Core asks for that.
4. What references mean is part of the key: each reference that was looked up outside is looked up again and must give the
   same content, or nothing again.
5. What stands after a `#` may mean an element by its id: where there is one, the resource's own id stays.
6. Messages may show a leaf. A verdict with issues is remembered only when the stand-ins themselves give the same issues.

The memory is bounded in bytes, keys and content included; the oldest goes first.
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
from cgm_proxy.core.rules.static_analysis import Analysis, Read

#: A full timestamp whose day its month has in every year; the 29th of February stays in the key.
TIMESTAMP = re.compile(
    r"(?!0000)\d{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?"
    r"(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d)",
    re.ASCII,
)
#: An identifier's value of which nothing is said: it has letters and digits alone, and what stands between them.
FREE = re.compile(r"[\w:/.\-|+=@!$%&*(),;~][\w:/.\-|+=@!$%&*(),;~# ]*")
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
#: Bytes of all keys and remembered content; a shape takes about 1 kB.
MEMORY_BYTES = 16 * 2**20
#: Bytes that a parsed value takes for each byte of its JSON, at most: `0.1,` is a Decimal and a place in a list.
PARSED = 30
#: Keys of faulty shapes that are noted when they are met first; each takes about 100 bytes.
MOST_MET = 20_000
#: Larger resources (a PDF) are not worth remembering.
LARGEST_SHAPE = 32 * 2**10
_ZEROS = str.maketrans("123456789", "000000000")
Leaves = tuple[tuple[str, Callable[[Any], Any]], ...]
encode = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True, slots=True)
class Remembered:
    """A verdict with what was looked up for it: each reference and what it meant, with its JSON."""

    issues: tuple[Issue, ...]
    looked_up: tuple[tuple[str, JsonObject | None, bytes], ...]

    def holds(self, resolve: ReferenceResolver) -> bool:
        """Whether each reference still means the same."""
        for reference, found, encoded in self.looked_up:
            now = resolve(reference)
            if now is not found and (now is None or found is None or encode(now) != encoded):
                return False
        return True


def _timestamp(value: Any) -> Any:
    """Give a timestamp's stand-in of the same length, or None for what is no full timestamp."""
    if type(value) is not str or not TIMESTAMP.fullmatch(value):
        return None
    return "1000-10-10T10:10:10" + (value[19:].translate(_ZEROS) if len(value) > 20 else "Z")


def _identity(value: Any) -> Any:
    return "0" if type(value) is str and ID.fullmatch(value) else None


def _number(value: Any) -> Any:
    # 0e0 is no valid decimal, and its JSON here is 0: so the stand-in is another number
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
    # "#…" could be what mentions a contained resource (dom-3); some systems say what the value is like
    free = type(text) is str and FREE.fullmatch(text) and item.get("system") not in URI_SYSTEMS
    return {**item, "value": "0"} if free else item


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf that may be replaced: its member, the elements that reading it would name, and its stand-in."""

    member: str
    reads: tuple[tuple[str, str], ...]
    stand_in: Callable[[Any], Any]


#: In an Observation, by the JSON member at its top level.
LEAVES = {
    "Observation": (
        Leaf("id", (("Resource", "id"), ("Observation", "id")), _identity),
        Leaf("effectiveDateTime", (("Observation", "effective[x]"),), _timestamp),
        Leaf("issued", (("Observation", "issued"),), _timestamp),
        Leaf("valueQuantity", (("Observation", "value[x]"), ("Quantity", "value")), _in_quantity),
        Leaf("identifier", (("Observation", "identifier"), ("Identifier", "value")), _in_identifiers),
    )
}


def free_leaves(type_: str, analyses: Iterable[Analysis]) -> Leaves:
    """Give the leaves of a type that no expression reads, with their stand-ins; none if one reads everything."""
    listed = list(analyses)
    if any(analysis.everything for analysis in listed):
        return ()
    read = {(r.type, r.element) for a in listed for r in a.reads if not _length_of_time(r)}
    return tuple((leaf.member, leaf.stand_in) for leaf in LEAVES.get(type_, ()) if not _is_read(leaf, read))


def _length_of_time(read: Read) -> bool:
    return read.how == "length" and read.element == "effective[x]"


def _is_read(leaf: Leaf, read: set[tuple[str, str]]) -> bool:
    return any(pair in read or ("*", pair[1].removesuffix("[x]")) in read for pair in leaf.reads)


class VerdictCache:
    """The memory. Safe for several threads."""

    def __init__(self, size: int = MEMORY_BYTES) -> None:
        self._known: dict[Any, Remembered] = {}
        self._met: dict[int, bool] = {}
        self._size = self._room = size
        self._lock = Lock()

    def recall(self, key: Any, resolve: ReferenceResolver) -> tuple[Issue, ...] | None:
        """Give the issues remembered for a key, if what its references mean is the same."""
        found = self._known.get(key)
        return found.issues if found is not None and found.holds(resolve) else None

    def remember(self, key: Any, issues: tuple[Issue, ...], looked_up: Iterable[tuple[str, JsonObject | None]]) -> None:
        """Remember a verdict; the oldest ones give it room."""
        listed = tuple((text, found, b"" if found is None else encode(found)) for text, found in looked_up)
        made = Remembered(issues, listed)
        if _size(key, made) > self._size:
            return
        with self._lock:
            self._forget(key)
            self._known[key] = made
            self._room -= _size(key, made)
            while self._room < 0:
                self._forget(next(iter(self._known)))

    def met(self, key: Any) -> bool:
        """Tell whether a key was met before, as far as that is noted, and note it.

        To learn what a faulty shape says takes twice the work of a verdict, so only what comes again is learned.
        """
        digest = hash(key)
        with self._lock:
            if self._met.pop(digest, False):
                return True
            self._met[digest] = True
            if len(self._met) > MOST_MET:
                del self._met[next(iter(self._met))]
        return False

    def _forget(self, key: Any) -> None:
        if (found := self._known.pop(key, None)) is not None:
            self._room += _size(key, found)

    def __len__(self) -> int:
        return len(self._known)


def _size(key: Any, found: Remembered) -> int:
    issues = sum(len(issue.text) + 200 for issue in found.issues)
    looked_up = sum((1 + PARSED) * len(encoded) + len(text) for text, _, encoded in found.looked_up)
    return 500 + len(key[-1]) + issues + looked_up


def shape(resource: JsonObject, leaves: Leaves) -> tuple[bytes, JsonObject]:
    """Give a resource's shape: its JSON with stand-ins for the free leaves, and the object that this JSON says."""
    plain = resource.copy()
    for member, stand_in in leaves:
        if member in plain:
            made = stand_in(plain[member])
            if made is not None:
                plain[member] = made
    encoded = encode(plain)
    if b"#" not in encoded or "id" not in plain:
        return encoded, plain
    plain["id"] = resource["id"]
    return encode(plain), plain
