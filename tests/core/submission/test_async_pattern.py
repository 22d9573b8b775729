"""FHIR's asynchronous pattern: who asks for it, which paths are its own, what a result says."""

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
def test_it_is_asked_for_by_name(prefer: str, expected: bool) -> None:
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
def test_the_id_is_found_below_the_base_alone(raw: str, expected: str | None) -> None:
    assert status_id(raw, str, "/fhir") == expected


def test_what_is_asked_for_the_upstreams_path_is_only_what_could_be_a_status() -> None:
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
    "an outcome": (
        (201, operation_outcome(()), {}),
        {"response": {"status": "201 Created", "outcome": operation_outcome(())}},
    ),
    "a status without a name": ((599, None, {}), {"response": {"status": "599"}}),
}


@pytest.mark.parametrize(("answer", "entry"), RESULTS.values(), ids=RESULTS)
def test_a_result_holds_what_the_answer_would_have_been(answer, entry) -> None:
    assert result_bundle(*answer) == {"resourceType": "Bundle", "type": "batch-response", "entry": [entry]}


def test_a_refusal_is_an_outcome_in_a_result() -> None:
    (entry,) = refused_result_bundle(refuse(422, "rule", "text"))["entry"]
    assert (entry["response"]["status"][:3], entry["response"]["outcome"]["issue"][0]["diagnostics"]) == ("422", "text")


def test_polls_are_asked_for_more_rarely_the_longer_it_takes() -> None:
    assert [poll_interval(age) for age in (0, 3, 10, 60, 1000, 1e9, -5)] == [2, 2, 5, 30, 60, 60, 2]
