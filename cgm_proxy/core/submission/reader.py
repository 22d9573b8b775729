"""A document from a body's bytes, the entries of its Bundle one after another.

A parsed reading takes six times the memory of its text, and to fill the memory so takes more time than to parse it again
where it is needed. So each entry is parsed, made an `Entry`, and forgotten.
"""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from cgm_proxy.core.codec import fhir_xml
from cgm_proxy.core.codec.json_body import (
    BOM,
    Buffer,
    encode,
    refuse_repeated,
    refusing_malformed,
    sniff,
    unreadable,
    with_room,
)
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.model import Entry, ParsedEntries, parse_entry


class _Item:
    """What an entry is to the decoder, which hands each over as soon as it is parsed."""


_ITEM = _Item()

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_parameters = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_anything = msgspec.json.Decoder(float_hook=Decimal)


def read_document(
    data: Buffer, depth: int, localize: Callable[[str], str], limit: int, between: Callable[[], None] | None = None
) -> JsonObject:
    """Parse a body of either format, told apart by its content; where `entry` of a Bundle is a list, it is `ParsedEntries`.

    `localize` is as in `bundle.submission`; at most `limit` entries are made, and one more; `between` is called between them.
    Raises `RequestRefused` (400) for anything that two readers could read differently.
    """
    match sniff(data):
        case "json":
            if data.startswith(BOM):  # noqa: FURB188 -- bytearray.removeprefix copies in any case
                data = data[len(BOM) :]
        case "xml":
            data = encode(fhir_xml.to_json(bytes(data), depth=depth, pack=_packed))
        case _:
            raise unreadable()
    reader = _Reader(partial(_Entries, localize, limit, between))
    with refusing_malformed():
        document = with_room(reader.document, data)
    refuse_repeated(data, reader.colons)
    return document


class _Reader:
    """Reads one document, and counts the colons of its compact serialisation."""

    def __init__(self, begin: "Callable[[], _Entries]") -> None:
        self.colons = 0
        self._begin = begin

    def document(self, data: Buffer | msgspec.Raw) -> JsonObject:
        """Read a document, and the resources that are parameters of it."""
        members = _members.decode(data)
        self.colons += len(members) + sum(name.count(":") for name in members)
        of = {"Bundle": ("entry", self._entries), "Parameters": ("parameter", self._parameters)}
        kind = _anything.decode(members.get("resourceType", b"null"))
        apart, read = of.get(kind, ("", self._value)) if isinstance(kind, str) else ("", self._value)
        return {name: (read if name == apart else self._value)(raw) for name, raw in members.items()}

    def _value(self, raw: Buffer | msgspec.Raw) -> Any:
        value = _anything.decode(raw)
        self.colons += encode(value).count(b":")
        return value

    def _parameters(self, raw: msgspec.Raw) -> Any:
        try:
            listed = _parameters.decode(raw)
        except msgspec.ValidationError:
            return self._value(raw)
        return [self._parameter(members) for members in listed]

    def _parameter(self, members: dict[str, msgspec.Raw]) -> JsonObject:
        self.colons += len(members) + sum(name.count(":") for name in members)
        made = {}
        for name, raw in members.items():
            inside = name == "resource" and memoryview(raw)[0] == ord("{")
            made[name] = self.document(raw) if inside else self._value(raw)
        return made

    def _entries(self, raw: msgspec.Raw) -> Any:
        if memoryview(raw)[0] != ord("["):
            return self._value(raw)
        entries = self._begin()
        msgspec.json.Decoder(list[_Item], dec_hook=entries.take, float_hook=Decimal).decode(raw)
        self.colons += entries.colons
        return ParsedEntries(entries.made, list(entries.outline.values()))


class _Entries:
    """Takes a Bundle's entries, one after another."""

    def __init__(self, localize: Callable[[str], str], limit: int, between: Callable[[], None] | None) -> None:
        self.made: list[Entry] = []
        self.outline: dict[bytes, Any] = {}
        self.colons = 0
        self._localize = localize
        self._limit = limit
        self._between = between
        self._told: Any = None
        self._request: tuple[bytes, Any] = b"", None

    def take(self, _: type, item: Any) -> _Item:
        """Make an `Entry` of a parsed entry, and keep its outline if it is not as that of the one before."""
        if self._between:
            self._between()
        told = _told(item)
        if told != self._told:
            self._told = told
            outlined = _outline(item)
            self.outline[encode(outlined)] = outlined
        if isinstance(item, dict) and (request := item.get("request")):
            if (text := encode(request)) != self._request[0]:
                self._request = text, request
            item["request"] = self._request[1]  # one object for all that ask for the same
        if len(self.made) <= self._limit:
            one = parse_entry(len(self.made), item, self._localize, self.made[-1] if self.made else None)
            self.made.append(one)
            if not one.issues:  # its resource is serialised already
                del item["resource"]
                self.colons += one.encoded.count(b":") + 1
        self.colons += encode(item).count(b":")
        return _ITEM


def _told(item: Any) -> Any:
    """Give what an outline tells of an entry; the whole of what is no entry."""
    resource = item.get("resource") if isinstance(item, dict) else None
    if not isinstance(resource, dict):
        return item
    return item.get("request"), resource.get("resourceType"), resource.get("meta"), resource.get("code")


def _outline(item: Any) -> Any:
    resource = item.get("resource") if isinstance(item, dict) else None
    if not isinstance(resource, dict):
        return item
    told = {name: resource[name] for name in ("resourceType", "meta", "code") if name in resource}
    return {"request": item.get("request"), "resource": told}


def _packed(entry: JsonObject) -> msgspec.Raw:
    return msgspec.Raw(encode(entry))
