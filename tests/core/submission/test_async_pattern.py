"""FHIR's asynchronous pattern: the preference, the paths of status URLs, and the result."""

import pytest

from cgm_proxy.core.issues import operation_outcome, refuse
from cgm_proxy.core.submission.async_pattern import (
    poll_interval,
    prefers_async,
    refused_result_bundle,
    result_bundle,
    status_id,
)

PREFERENCES = {
    "respond-async": True,
    "Respond-Async": True,
    "return=representation, respond-async": True,
    "respond-async;x=1": True,
    "return=minimal; respond-async": True,
    "respond-async, wait=10": True,
    "respond-asynchronously": False,
    "return=respond-async": False,
    "wait=10": False,
    "": False,
}


@pytest.mark.parametrize(("prefer", "expected"), PREFERENCES.items())
def test_respond_async_is_recognised_in_a_prefer_header(prefer: str, expected: bool) -> None:
    assert prefers_async(prefer) is expected


PATHS = {
    "/fhir/$cgm-submission-status/x": "x",
    "/fhir/%24cgm-submission-status/x?a=/y": "x",
    "http://proxy/fhir/$cgm-submission-status/x": "x",
    "/fhir//./$cgm-submission-status;a/x/": "x",
    "/fhir/$cgm-submission-status/x/..": None,
    "/fhir/$cgm-submission-status": None,
    "/fhir/$cgm-submission-status/x/y": None,
    "/$cgm-submission-status/x": None,
    "/fhir/Patient/$cgm-submission-status/x": None,
    "/fhir/Patient?_id=$cgm-submission-status/x": None,
    "": None,
}


@pytest.mark.parametrize(("raw", "expected"), PATHS.items())
def test_a_status_url_must_be_directly_below_the_base(raw: str, expected: str | None) -> None:
    assert status_id(raw, str, "/fhir") == expected


def test_other_paths_are_not_mapped_to_the_upstreams() -> None:
    def never(_: str) -> str:
        raise AssertionError

    assert status_id("/fhir/Patient/1", never, "/fhir") is None


RESULTS = {
    "a Bundle": (
        (200, {"resourceType": "Bundle"}, {}),
        {"resource": {"resourceType": "Bundle"}, "response": {"status": "200 OK"}},
    ),
    "one resource": (
        (201, None, {"Location": "http://h/Observation/1", "ETag": 'W/"1"', "X": "y"}),
        {"response": {"status": "201 Created", "location": "http://h/Observation/1", "etag": 'W/"1"'}},
    ),
    "an OperationOutcome": (
        (201, operation_outcome(()), {}),
        {"response": {"status": "201 Created", "outcome": operation_outcome(())}},
    ),
    "a status without a reason phrase": ((599, None, {}), {"response": {"status": "599"}}),
}


@pytest.mark.parametrize(("response", "entry"), RESULTS.values(), ids=RESULTS)
def test_a_result_has_the_status_headers_and_body_of_the_response(response, entry) -> None:
    assert result_bundle(*response) == {"resourceType": "Bundle", "type": "batch-response", "entry": [entry]}


def test_the_result_of_a_refused_submission_has_its_outcome() -> None:
    (entry,) = refused_result_bundle(refuse(422, "rule", "text"))["entry"]
    assert (entry["response"]["status"][:3], entry["response"]["outcome"]["issue"][0]["diagnostics"]) == ("422", "text")


def test_the_poll_interval_grows_with_the_age_of_the_submission() -> None:
    assert [poll_interval(age) for age in (0, 3, 10, 60, 1000, 1e9, -5)] == [2, 2, 5, 30, 60, 60, 2]
