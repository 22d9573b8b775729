"""What a server's answers mean: stored, refused for good, or worth sending again; whatever it answers."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from multidict import CIMultiDict
from support.submissions import entry, identified_entries, reading, submitted, urn

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.rest.responses import (
    LOST,
    Retry,
    UpstreamRefusal,
    UpstreamResponse,
    read_bundle_response,
    read_single_response,
    retry_after,
)
from cgm_proxy.core.submission.outcomes import Stored

NOW = datetime(2025, 6, 15, 12, tzinfo=UTC)
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "x", "diagnostics": "why"}]}


def answered(status: int, body: Any = OUTCOME, **headers: str) -> UpstreamResponse:
    fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return UpstreamResponse(status, fields, body if isinstance(body, bytes) else encode(body), NOW)


#: Answers by which nothing is known to be stored, and what they mean.
WITHOUT: list[tuple[UpstreamResponse, Retry | UpstreamRefusal]] = [
    (answered(400), UpstreamRefusal(400, OUTCOME)),
    (answered(400, b"<html>"), UpstreamRefusal(400, {})),
    (answered(401, WWW_Authenticate="Bearer"), UpstreamRefusal(401, OUTCOME, "Bearer")),
    (answered(307), UpstreamRefusal(307, OUTCOME)),
    (answered(501), UpstreamRefusal(501, OUTCOME)),
    (answered(409), Retry("conflict", refusal=UpstreamRefusal(409, OUTCOME))),
    (answered(412), Retry("unclear", refusal=UpstreamRefusal(412, OUTCOME))),
    (answered(408), Retry("busy")),
    (answered(429), Retry("busy")),
    (answered(429, Retry_After="7"), Retry("busy", 7)),
    (answered(503, Retry_After="7"), Retry("busy", 7)),
    (answered(503, Retry_After="Sun, 15 Jun 2025 12:01:00 GMT"), Retry("busy", 60)),
    (answered(503), LOST),
    (answered(503, Retry_After="soon"), LOST),
    (answered(500), Retry("failed")),
    (answered(500, b"<html>"), LOST),
    (answered(502, b"<html>"), LOST),
    (answered(504, OUTCOME), LOST),
    (answered(520), LOST),
]


@pytest.mark.parametrize(("given", "meaning"), WITHOUT)
def test_what_an_answer_without_a_location_means(given: UpstreamResponse, meaning: Any) -> None:
    assert read_bundle_response(given, 2, whole=True) == meaning
    assert read_bundle_response(given, 2, whole=False) == meaning
    assert read_single_response(given, "Observation") == meaning


def response(status: str, location: str | None = None, **more: Any) -> Any:
    return {"response": {"status": status, **({"location": location} if location else {}), **more}}


#: Entries of a batch-response, and what they mean.
ENTRIES: list[tuple[Any, Any]] = [
    (response("201 Created", "Observation/1/_history/1", etag="1"), Stored("Observation/1/_history/1", 'W/"1"', True)),
    (response("200", "http://up/fhir/Observation/1"), Stored("Observation/1")),
    (response("201"), Retry("unclear")),
    (response("204 No Content"), Retry("unclear")),
    (response("422", outcome=OUTCOME), UpstreamRefusal(422, OUTCOME)),
    (response("422", outcome=7), UpstreamRefusal(422, {})),
    (response("409 Conflict"), Retry("conflict", refusal=UpstreamRefusal(409, {}))),
    (response("412", outcome=OUTCOME), Retry("unclear", refusal=UpstreamRefusal(412, OUTCOME))),
    (response("500", outcome=OUTCOME), Retry("failed")),
    (response("500"), LOST),
    (response("503"), LOST),
    (response("429"), Retry("busy")),
    (response("Created"), LOST),
    (response("²²²"), LOST),
    ({"response": 7}, LOST),
    ({}, LOST),
    (7, LOST),
    (None, LOST),
]


@pytest.mark.parametrize(("one", "meaning"), ENTRIES)
def test_each_entry_of_a_batch_is_answered_for_itself(one: Any, meaning: Any) -> None:
    sound = response("201", "Observation/9/_history/1")
    given = answered(200, {"resourceType": "Bundle", "entry": [sound, one]})
    assert read_bundle_response(given, 2, whole=False) == [Stored("Observation/9/_history/1", created=True), meaning]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", {}, {"entry": None}, {"entry": []}, {"entry": [{}, {}, {}]}])
@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_is_not_about_what_was_sent_leaves_its_fate_unknown(body: Any, whole: bool) -> None:
    assert read_bundle_response(answered(200, body), 2, whole=whole) == LOST


RESOURCE = {"resourceType": "Observation", "id": "7", "meta": {"versionId": "2"}}

#: Answers to an entry by itself.
SINGLE: list[tuple[UpstreamResponse, Any]] = [
    (
        answered(201, b"", Location="http://up/fhir/Observation/7/_history/1", ETag='W/"1"'),
        ("7/_history/1", 'W/"1"', True),
    ),
    (answered(200, b"", Content_Location="Observation/7"), ("7", None, False)),
    (answered(200, b"", Location="Patient/1", Content_Location="Observation/7"), ("7", None, False)),
    (answered(200, RESOURCE), ("7/_history/2", 'W/"2"', False)),
]


@pytest.mark.parametrize(("given", "place"), SINGLE)
def test_an_entry_by_itself_is_where_the_answer_says(given: UpstreamResponse, place: Any) -> None:
    stored = read_single_response(given, "Observation")
    assert isinstance(stored, Stored)
    assert (stored.location, stored.etag, stored.created) == (f"Observation/{place[0]}", *place[1:])


@pytest.mark.parametrize(
    "given",
    [
        answered(200, b""),
        answered(201, OUTCOME),
        answered(200, RESOURCE | {"id": "../x"}),
        answered(200, b"", Location="x"),
    ],
)
def test_an_entry_that_is_stored_nobody_says_where_is_unclear(given: UpstreamResponse) -> None:
    assert read_single_response(given, "Observation") == Retry("unclear")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("9" * 400, math.inf),
        ("Sun, 15 Jun 2025 12:00:30 GMT", 30),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Sun, 15 Jun 2025 14:00:30 +0200", 30),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Sun, 99 Jun 2025 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after(text, NOW) == seconds


ONES = identified_entries(
    submitted(
        *(entry(reading(n, device={"reference": f"Device/d{n}"}), urn(n)) for n in range(3)),
    )
)


def refusal(*issues: Any) -> UpstreamRefusal:
    return UpstreamRefusal(400, {"issue": list(issues)})


#: What a server says of three entries, and which it names. HAPI 8.8's words were measured.
NAMED = [
    (refusal({"expression": ["Bundle.entry[1].resource.status"]}), {1}),
    (refusal({"location": ["Bundle.entry[0]", "x"]}, {"diagnostics": "Bundle.entry[2] is wrong"}), {0, 2}),
    (refusal({"expression": ["Bundle.entry[3]"]}), set()),
    (refusal({"diagnostics": "HAPI-1094: Resource Device/d2 not found, specified in path: Observation.device"}), {2}),
    (
        refusal({"diagnostics": "HAPI-1094: Resource Device/d22 not found, specified in path: Observation.device"}),
        set(),
    ),
    (refusal({"diagnostics": "there is no http://x.org/fhir/Device/d2."}), {2}),
    (
        refusal(
            {
                "diagnostics": f'HAPI-2207: Invalid match URL "Observation?identifier=urn:ietf:rfc:3986|{ONES[1].identity}" - '
                "Multiple resources match this search"
            }
        ),
        {1},
    ),
    (refusal({"diagnostics": "HAPI-0450: Failed to parse request body as JSON resource."}), set()),
    (refusal({"diagnostics": 7, "expression": {"a": 1}, "location": None}, None, 7), set()),
    (UpstreamRefusal(400, {"issue": "x"}), set()),
]


@pytest.mark.parametrize(("said", "places"), NAMED)
def test_a_refusal_names_entries_by_path_by_identity_or_by_what_they_reference(
    said: UpstreamRefusal, places: set[int]
) -> None:
    assert said.named(ONES) == places


@pytest.mark.parametrize(
    ("said", "too_large", "of_all"),
    [
        (UpstreamRefusal(413, {}), True, False),
        (refusal({"code": "too-costly"}), True, False),
        (refusal({"code": "too-long"}), True, False),
        (refusal({"code": "invalid"}), False, False),
        (refusal({"code": ["too-long"]}, {"code": {}}), False, False),
        (UpstreamRefusal(401, {}), False, True),
        (UpstreamRefusal(501, {}), False, True),
        (UpstreamRefusal(302, {}), False, True),
    ],
)
def test_a_refusal_is_of_an_entry_of_so_many_or_of_all(said: UpstreamRefusal, too_large: bool, of_all: bool) -> None:
    assert (said.too_large, said.refuses_all) == (too_large, of_all)
