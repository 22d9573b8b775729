"""Reads the body of a submission: a document whose Bundle's entries are parsed one after another.

A parsed reading takes six times the memory of its text, and filling that much memory takes longer than parsing the text again
where it is needed. So each entry is parsed, turned into an `Entry`, and dropped.
"""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from cgm_proxy.core.codec.bodies import sniff, unreadable
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import BOM, Buffer, encode, refuse_repeated, refusing_malformed, with_spare_frames
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.model import Entry, ParsedEntries, parse_entry


class _EntryMarker:
    """The type under which the decoder passes each item of `Bundle.entry` to a hook as soon as it is parsed."""


_ENTRY_MARKER = _EntryMarker()

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_parameters = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_any_value = msgspec.json.Decoder(float_hook=Decimal)


def read_document(
    data: Buffer, xml: FhirXml, localize: Callable[[str], str], limit: int, between: Callable[[], None] | None = None
) -> JsonObject:
    """Parse a JSON or XML body, recognised by its content; a list in a Bundle's `entry` becomes `ParsedEntries`.

    `xml` converts an XML body. `localize` turns an absolute reference to this server into a relative one. At most
    `limit` + 1 entries are built; `between` is called before each entry.
    Raises `RequestRefused` (400) for anything that two parsers could read differently.
    """
    match sniff(data):
        case "json":
            if data.startswith(BOM):  # noqa: FURB188 -- bytearray.removeprefix copies in any case
                data = data[len(BOM) :]
        case "xml":
            data = encode(xml.to_json(bytes(data), pack=lambda item: msgspec.Raw(encode(item))))
        case _:
            raise unreadable()
    reader = _Reader(partial(_EntryCollector, localize, limit, between))
    with refusing_malformed():
        document = with_spare_frames(reader.document, data)
    refuse_repeated(data, reader.colons)
    return document


class _Reader:
    """Reads one document and counts the colons of its compact serialisation.

    A body that has another number of colons may have objects with repeated names, which `refuse_repeated` looks for.
    """

    def __init__(self, begin_entries: "Callable[[], _EntryCollector]") -> None:
        self.colons = 0
        self._begin_entries = begin_entries

    def document(self, data: Buffer | msgspec.Raw) -> JsonObject:
        """Return a parsed document; a Parameters resource may have further documents in its parameters."""
        members = _members.decode(data)
        self._count_names(members)
        resource_type = _any_value.decode(members.get("resourceType", b"null"))
        readers = dict.fromkeys(members, self._value)
        match resource_type:
            case "Bundle":
                readers["entry"] = self._entries
            case "Parameters":
                readers["parameter"] = self._parameters
        return {name: readers[name](raw) for name, raw in members.items()}

    def _count_names(self, members: dict[str, msgspec.Raw]) -> None:
        self.colons += len(members) + sum(name.count(":") for name in members)

    def _value(self, raw: msgspec.Raw) -> Any:
        value = _any_value.decode(raw)
        self.colons += encode(value).count(b":")
        return value

    def _parameters(self, raw: msgspec.Raw) -> Any:
        try:
            parameters = _parameters.decode(raw)
        except msgspec.ValidationError:
            return self._value(raw)
        read = []
        for members in parameters:
            self._count_names(members)
            read.append(
                {
                    name: self.document(raw) if name == "resource" and _first_byte(raw) == b"{" else self._value(raw)
                    for name, raw in members.items()
                }
            )
        return read

    def _entries(self, raw: msgspec.Raw) -> Any:
        if _first_byte(raw) != b"[":
            return self._value(raw)
        collector = self._begin_entries()
        msgspec.json.Decoder(list[_EntryMarker], dec_hook=collector.take, float_hook=Decimal).decode(raw)
        self.colons += collector.colons
        return ParsedEntries(collector.entries, list(collector.outlines.values()))


def _first_byte(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


class _EntryCollector:
    """Builds a Bundle's entries and their outlines while the Bundle is parsed."""

    def __init__(self, localize: Callable[[str], str], limit: int, between: Callable[[], None] | None) -> None:
        self.entries: list[Entry] = []
        self.outlines: dict[bytes, Any] = {}
        self.colons = 0
        self._localize = localize
        self._limit = limit
        self._between = between
        self._previous_key: Any = None
        self._previous_request: tuple[bytes, Any] = b"", None

    def take(self, _: type, item: Any) -> _EntryMarker:
        """Build the `Entry` of a parsed item, and its outline unless it is the same as that of the previous item."""
        if self._between:
            self._between()
        resource = item.get("resource") if isinstance(item, dict) else None
        key = item
        if isinstance(resource, dict):
            key = item.get("request"), resource.get("resourceType"), resource.get("meta"), resource.get("code")
        if key != self._previous_key:
            self._previous_key = key
            outline = _outline(item, resource)
            self.outlines[encode(outline)] = outline
        if isinstance(item, dict) and (request := item.get("request")):
            if (encoded := encode(request)) != self._previous_request[0]:
                self._previous_request = encoded, request
            item["request"] = self._previous_request[1]  # entries with equal requests share one object
        if len(self.entries) <= self._limit:
            previous = self.entries[-1] if self.entries else None
            entry = parse_entry(len(self.entries), item, self._localize, previous)
            self.entries.append(entry)
            if not entry.issues:  # its resource is serialised already, and its colons are counted there
                del item["resource"]
                self.colons += entry.encoded.count(b":") + 1
        self.colons += encode(item).count(b":")
        return _ENTRY_MARKER


def _outline(item: Any, resource: Any) -> Any:
    if not isinstance(resource, dict):
        return item
    members = {name: resource[name] for name in ("resourceType", "meta", "code") if name in resource}
    return {"request": item.get("request"), "resource": members}
