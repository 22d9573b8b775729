"""Reading a body entry by entry gives the same refusals, entries and dialects as parsing it as a whole."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.any_json import ENTRIES
from support.json_samples import DUPLICATES, MALFORMED, texts
from support.r4 import FHIR_XML
from support.submissions import LIMITS, bundle, entry, localize, reading, summary, urn

from cgm_proxy.core.codec.bodies import parse
from cgm_proxy.core.codec.json_body import BOM, decode, encode
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission import reader
from cgm_proxy.core.submission.detection import content_dialect, operation_dialect, tagged_dialect
from cgm_proxy.core.submission.dialects import DIALECTS, DIALECTS_BY_ID
from cgm_proxy.core.submission.model import ParsedEntries, operation_bundle, submission_from_bundle

ARGO = DIALECTS_BY_ID["argo"]
TAGGED = {"meta": {"tag": [{"system": ARGO.code_system, "code": ARGO.tags[0]}]}}


def read(data: bytes, limit: int = LIMITS.entries) -> JsonObject:
    return reader.read_document(data, FHIR_XML, localize, limit)


def result_or_refusal(read_body: Any, data: bytes) -> Any:
    try:
        return read_body(data)
    except RequestRefused as refused:
        return refused.status, refused.issues[0].rule


def submission_of(document: Any, endpoint: str) -> Any:
    """Return the dialects and the submission of a document, or the status and rule of its refusal."""
    if isinstance(document, tuple):
        return document
    dialects = tagged_dialect(document), content_dialect(document)
    try:
        opened = operation_bundle(document) if endpoint == "operation" else document
        return dialects, operation_dialect(opened), submission_from_bundle(opened, ARGO, endpoint, localize, LIMITS)
    except RequestRefused as refused:
        return dialects, refused.status, refused.issues[0].rule


def check_same(data: bytes) -> None:
    for endpoint in ("base", "operation"):
        whole = submission_of(result_or_refusal(lambda given: parse(given, FHIR_XML), data), endpoint)
        assert submission_of(result_or_refusal(read, data), endpoint) == whole


WRONG = {name: data for name, data in (MALFORMED | DUPLICATES).items() if name != "not an object: array"}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    "around",
    [
        "%b",
        '{"resourceType":"Bundle","type":"batch","entry":[{},%b]}',
        '{"resourceType":"Bundle","type":"batch","entry":[{"resource":%b}]}',
        '{"resourceType":"Bundle","type":"batch","entry":%b}',
        '{"resourceType":"Bundle","type":"batch","x":%b,"entry":[]}',
        '{"resourceType":"Parameters","parameter":[%b]}',
        '{"resourceType":"Parameters","parameter":[{"name":"resource","resource":%b}]}',
        '{"resourceType":"Parameters","parameter":[{"resource":{"resourceType":"Bundle","entry":[%b]}}]}',
    ],
)
def test_malformed_json_is_refused_anywhere_in_a_document(wrong: bytes, around: str) -> None:
    data = around.encode() % wrong
    assert result_or_refusal(read, data) == result_or_refusal(lambda given: parse(given, FHIR_XML), data)
    assert result_or_refusal(read, data)[0] == 400


@pytest.mark.parametrize(
    "data",
    [
        b'{"resourceType":"Bundle","type":"batch","type":"batch","entry":[]}',
        b'{"resourceType":"Bundle","entry":[{}],"entry":[]}',
        b'{"resourceType":"Basic","resourceType":"Bundle","entry":[]}',
        b'{"resourceType":"Bundle","entry":[],"\\u0065ntry":[{}]}',
        b'{"resourceType":"Bundle","entry":[{"request":{},"request":{}}]}',
        b'{"resourceType":"Bundle","entry":[{"resource":{},"resource":{}}]}',
        b'{"resourceType":"Parameters","parameter":[],"parameter":[]}',
        b'{"resourceType":"Parameters","parameter":[{"name":"x","name":"resource"}]}',
    ],
)
def test_a_repeated_name_in_the_members_around_entries_is_refused(data: bytes) -> None:
    assert result_or_refusal(read, data) == (400, "json-duplicate-key")


def whole(entries: Any) -> JsonObject:
    return {**bundle(kind="batch"), **TAGGED, "entry": entries}


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, max_size=4) | ENTRIES, st.booleans())
def test_any_entries_are_the_same_as_in_the_whole_document(entries: Any, wrapped: bool) -> None:
    made: JsonObject = whole(entries)
    if wrapped:
        made = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": made}]}
    check_same(encode(made))


@settings(max_examples=300, deadline=None)
@given(st.lists(texts(), max_size=3), st.booleans())
def test_any_text_gives_the_same_as_parsing_it_as_a_whole(entries: list[str], listed: bool) -> None:
    inside = f"[{','.join(entries)}]" if listed else "".join(entries[:1])
    check_same(f'{{"resourceType":"Bundle","type":"batch", "entry" : {inside} }}'.encode())


@pytest.mark.parametrize("kind", ["List", "Bundl\\u0065", "Observation", 5, None, ["Bundle"]])
def test_only_a_bundles_entries_are_read_one_by_one(kind: Any) -> None:
    text = f'"{kind}"' if isinstance(kind, str) else encode(kind).decode()
    found = read(f'{{"resourceType":{text},"entry":[{{}}]}}'.encode())
    assert isinstance(found["entry"], ParsedEntries) == (kind == "Bundl\\u0065")


def test_a_byte_order_mark_is_skipped() -> None:
    assert read(BOM + encode(whole([]))).keys() == whole([]).keys()


def test_a_resource_keeps_the_digits_that_were_sent() -> None:
    sent = b'{"resourceType":"Observation","valueQuantity":{"value":5.60},"x":[1e2,100.0,-0.0]}'
    (only_entry,) = read(b'{"resourceType":"Bundle","entry":[{"resource": %b}]}' % sent)["entry"].entries
    assert encode(only_entry.resource) == only_entry.encoded == sent.replace(b"1e2", b"1E+2")


def test_xml_gives_the_same_entries_as_json() -> None:
    members = [entry(reading(n, value=100 + n, id=f"r{n}"), urn(n)) for n in range(5)]
    made = whole([*members, entry(summary(urn(1), urn(2)))])
    from_xml, from_json = (read(data)["entry"].entries for data in (FHIR_XML.to_xml(made), encode(made)))
    assert [each.resource for each in from_xml] == [each.resource for each in from_json]
    assert [(each.full_url, each.request, each.subject) for each in from_xml] == [
        (each.full_url, each.request, each.subject) for each in from_json
    ]
    check_same(FHIR_XML.to_xml(made))


def test_the_outlines_have_each_code_and_request_once() -> None:
    codes = [dialect.code_system for dialect in DIALECTS]
    coded = [reading(n) | {"code": {"coding": [{"system": codes[n % 4], "code": "x"}]}} for n in range(100)]
    requests = [{"request": {"method": "DELETE", "url": "Observation/1"}}] * 3
    outlines = read(encode(whole([*map(entry, coded), *requests, 5, [], None])))["entry"].outlines
    assert Counter(type(outline).__name__ for outline in outlines) == {
        "dict": len(set(codes)) + 1,
        "int": 1,
        "list": 1,
        "NoneType": 1,
    }
    assert {"method": "DELETE", "url": "Observation/1"} in [
        outline["request"] for outline in outlines if isinstance(outline, dict)
    ]
    assert all("valueQuantity" not in encode(outline).decode() for outline in outlines)


def test_at_most_one_entry_more_than_the_limit_is_built() -> None:
    data = b'{"resourceType":"Bundle","type":"batch","entry":[%b]}' % b",".join([b"0"] * 1000)
    found = read(data, limit=10)
    assert len(found["entry"].entries) == 11
    assert decode(data)["entry"] == [0] * 1000
