"""Answers come in the format that was asked for."""

from decimal import Decimal
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from cgm_proxy.core import body
from cgm_proxy.core.errors import Issue, RequestRefused, refuse
from cgm_proxy.render import refusal, resource, wanted_format

JSON, XML = "application/fhir+json", "application/fhir+xml"


def request(target: str = "/fhir", **headers: str) -> Any:
    return make_mocked_request("POST", target, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("target", "accept", "expected"),
    [
        ("/fhir", "", "json"),
        ("/fhir", "*/*", "json"),
        ("/fhir", JSON, "json"),
        ("/fhir", XML, "xml"),
        ("/fhir", "application/xml", "xml"),
        ("/fhir", "text/html", "json"),
        ("/fhir", f"{JSON};q=0.5, {XML}", "xml"),
        ("/fhir", f"{XML};q=0.5,{JSON};q=0.9", "json"),
        ("/fhir", f"{XML} ; charset=utf-8 ; q=0.2 , {JSON} ; q=0.1", "xml"),
        ("/fhir", f"{JSON}, {XML}", "json"),
        ("/fhir", f"{XML};q=0, */*", "json"),
        ("/fhir", f"{XML};q=x, {JSON}", "json"),
        ("/fhir", f"{XML};q=nan, {JSON}", "json"),
        ("/fhir", f"{XML};q=1e999, {JSON};q=-1", "json"),
        ("/fhir", ",;q=,;;", "json"),
        ("/fhir?_format=xml", JSON, "xml"),
        ("/fhir?_format=json", XML, "json"),
        ("/fhir?_format=application/fhir%2Bxml", JSON, "xml"),
        ("/fhir?_format=application/fhir+xml", JSON, "xml"),
        ("/fhir?_format=text/turtle", XML, "xml"),
        ("/fhir?_format=&_format=xml", JSON, "xml"),
        ("/fhir?_format", JSON, "json"),
        ("/fhir?x=_format=xml", JSON, "json"),
        ("/fhir?%ff=%zz&_format=%00", JSON, "json"),
    ],
)
def test_the_format_is_the_one_asked_for(target: str, accept: str, expected: str) -> None:
    assert wanted_format(request(target, Accept=accept)) == expected


def test_otherwise_the_answer_is_in_the_format_of_the_request() -> None:
    content = {"resourceType": "OperationOutcome"}
    for sent, expected in ((XML, XML), (f"{JSON}; charset=utf-8", JSON), ("text/plain", JSON), ("", JSON)):
        answer = resource(request(Content_Type=sent), 200, content)
        assert answer.headers["Content-Type"] == f"{expected};charset=utf-8"


def test_a_resource_keeps_its_digits() -> None:
    content = {"resourceType": "Observation", "valueQuantity": {"value": Decimal("100.0")}}
    assert resource(request(), 200, content).body == body.encode(content)
    assert b'value="100.0"' in resource(request(Accept=XML), 200, content).body  # type: ignore[operator]


def test_an_answer_without_a_resource_has_no_body() -> None:
    answer = resource(request(), 201, None, Location="x", ETag=None)
    assert (answer.status, answer.body) == (201, None)
    assert (answer.headers["Location"], "ETag" in answer.headers) == ("x", False)


@pytest.mark.parametrize("accept", [JSON, XML])
def test_a_refusal_is_an_outcome_with_its_headers(accept: str) -> None:
    refused = refuse(503, "busy", "try again", code="throttled", Retry_After="5")
    answer = refusal(request(Accept=accept), refused, "r-1")
    assert (answer.status, answer.headers["Retry-After"], answer.headers["X-Request-ID"]) == (503, "5", "r-1")
    assert b"busy" in answer.body  # type: ignore[operator]
    assert "X-Request-ID" not in refusal(request(), refused).headers


@pytest.mark.parametrize("text", ["a\x00\x01\x1f\x7f", "\ufffe\uffff", "<&>\"'", "]]>", "ä😀", "x" * 100_000])
def test_whatever_a_message_quotes_can_be_written(text: str) -> None:
    for accept in (JSON, XML):
        answer = refusal(request(Accept=accept), RequestRefused(400, (Issue("r", text, text),)))
        assert body.parse(answer.body, 64)["resourceType"] == "OperationOutcome"  # type: ignore[arg-type]
