"""The answer: in the entries' order, with statuses that tell the truth."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from support.submissions import FakeRules, context, entry, gmi, observation, reading, report, submitted, summary, urn

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.issues import Issue
from cgm_proxy.core.submission import reply
from cgm_proxy.core.submission.judge import judge
from cgm_proxy.core.submission.orders import Schedule, StandingOrder
from cgm_proxy.core.submission.outcomes import Outcome, PassedThrough, Refused, Stored
from cgm_proxy.core.submission.reply import EntryResponse, entry_responses, preferred_return, refusal, with_entry_path
from cgm_proxy.core.submission.verdicts import Judgement
from cgm_proxy.settings.loading import PolicySettings

BAD = FakeRules({"bad": Issue("bad", "b", "Observation.code"), "odd": Issue("odd", "o", severity="warning")})


def judgement(*items: Any, kind: str = "transaction", target: str = "operation", **more: Any) -> Judgement:
    return judge(submitted(*items, kind=kind, endpoint=target), context(**{"rules": BAD, **more}))


def bundle(judgement: Judgement, made: Sequence[EntryResponse], preferred: reply.Return) -> dict[str, Any]:
    """Return the response Bundle as it is serialised."""
    return decode(encode(reply.response_bundle(judgement, made, preferred)))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "minimal"),
        ("return=minimal", "minimal"),
        ("return=representation", "representation"),
        ("return=OperationOutcome", "OperationOutcome"),
        ("return=operationoutcome", "OperationOutcome"),
        ("Return=Representation", "representation"),
        ('return="representation"', "representation"),
        ("return = representation", "representation"),
        ("respond-async, return=representation", "representation"),
        ("handling=strict; x=y, return=OperationOutcome; z", "OperationOutcome"),
        ("return=representation, return=minimal", "representation"),  # the first one counts (RFC 7240, 2)
        ("return=unknown, return=representation", "representation"),
        ("return", "minimal"),
        ("return=", "minimal"),
        ("noreturn=representation", "minimal"),
        ("=;,,==", "minimal"),
        ("x" * 10_000, "minimal"),
    ],
)
def test_a_preference_is_read(header: str, expected: str) -> None:
    assert preferred_return(header) == expected


def test_answers_come_in_the_entries_order_with_what_became_of_each() -> None:
    judged = judgement(*[entry(reading(n)) for n in range(6)], entry(reading(7, id="bad")))
    outcomes: dict[int, Outcome] = {
        4: Refused(422, (Issue("x", "why"),)),
        0: Stored("Observation/7/_history/1", 'W/"1"', created=True),
        1: Stored("Observation/8"),
        3: Refused(503, (Issue("y", "when"),)),
        2: PassedThrough(201, {"response": {"status": "201 Created"}}),
    }
    made = entry_responses(judged, outcomes)
    assert [answer.status for answer in made] == [201, 200, 201, 503, 422, 422, 422]
    whole = bundle(judged, made, "minimal")
    assert [e["response"]["status"] for e in whole["entry"]] == [
        "201 Created",
        "200 OK",
        "201 Created",
        "503 Service Unavailable",
        "422 Unprocessable Entity",
        "422 Unprocessable Entity",
        "422 Unprocessable Entity",
    ]
    assert not any("request" in e for e in whole["entry"])
    assert whole["entry"][0]["response"] == {
        "status": "201 Created",
        "location": "Observation/7/_history/1",
        "etag": 'W/"1"',
    }
    assert whole["entry"][1]["response"] == {"status": "200 OK", "location": "Observation/8"}


def test_what_was_accepted_and_has_no_outcome_is_not_said_to_be_stored() -> None:
    [answer] = entry_responses(judgement(entry(reading())), {})
    assert (answer.status, answer.stored) == (422, None)


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("batch", "base", "batch-response"),
        ("transaction", "base", "transaction-response"),
        ("transaction", "operation", "transaction-response"),
        ("batch", "operation", "transaction-response"),
    ],
)
def test_the_responses_type_follows_the_way_of_submitting(kind: str, target: str, expected: str) -> None:
    judged = judgement(entry(reading()), kind=kind, target=target)
    assert bundle(judged, entry_responses(judged, {}), "minimal")["type"] == expected


@pytest.mark.parametrize("status", [299, 420, 499, 520, 599])
def test_a_status_without_a_phrase_is_answered_as_it_is(status: int) -> None:
    judged = judgement(entry(reading()))
    made = entry_responses(judged, {0: Refused(status, (Issue("x", "why"),))})
    assert bundle(judged, made, "minimal")["entry"][0]["response"]["status"] == str(status)


@pytest.mark.parametrize(
    ("item", "status"),
    [
        (None, 400),
        (entry(reading(), method="PUT"), 400),
        (entry(reading(subject={"reference": "Patient/2"})), 403),
        (entry(reading(subject=None)), 400),
        (entry(observation("8480-6")), 422),
        (entry(reading(id="bad")), 422),
        (entry(reading(id="odd")), 422),  # accepted, but there is no outcome
    ],
)
def test_a_refusals_status_tells_its_kind(item: Any, status: int) -> None:
    judged = judgement(entry(reading(1)), entry(reading(2)), item)
    assert entry_responses(judged, {})[2].status == status


PREFERENCES = [
    ("minimal", None, False),
    ("minimal", Issue("odd", "o", severity="warning"), True),
    ("representation", None, False),
    ("representation", Issue("odd", "o", severity="warning"), True),
    ("OperationOutcome", None, True),
]


@pytest.mark.parametrize(("preferred", "issue", "outcome"), PREFERENCES)
def test_an_entry_has_an_outcome_where_there_is_something_to_say_or_it_is_asked_for(
    preferred: Any, issue: Issue | None, outcome: bool
) -> None:
    judged = judgement(entry(reading(1)))
    resource = {"resourceType": "Observation", "id": "7"}
    answer = EntryResponse(201, (issue,) if issue else (), Stored("Observation/7", created=True, resource=resource))
    [only] = bundle(judged, [answer], preferred)["entry"]
    assert ("outcome" in only["response"]) == outcome
    assert (only.get("resource") == resource) == (preferred == "representation")


def test_a_representation_that_is_not_there_is_left_out() -> None:
    judged = judgement(entry(reading()))
    [only] = bundle(judged, [EntryResponse(200, (), Stored("Observation/7"))], "representation")["entry"]
    assert only == {"response": {"status": "200 OK", "location": "Observation/7"}}


def test_what_is_said_of_the_whole_stands_in_the_first_entry() -> None:
    judged = judgement(entry(reading()), entry(reading(1)), policies=PolicySettings(no_order="warn"))
    first, second = bundle(judged, entry_responses(judged, {}), "minimal")["entry"]
    assert [issue["details"]["coding"][0]["code"] for issue in first["response"]["outcome"]["issue"]] == ["order-none"]
    assert "outcome" not in second["response"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (None, "Bundle.entry[1]"),
        ("", "Bundle.entry[1]"),
        ("Observation", "Bundle.entry[1].resource"),
        ("Observation.code", "Bundle.entry[1].resource.code"),
        ("Observation.component[2].code", "Bundle.entry[1].resource.component[2].code"),
        ("request.method", "Bundle.entry[1].request.method"),
        ("fullUrl", "Bundle.entry[1].fullUrl"),
        ("Bundle.entry", "Bundle.entry"),
    ],
)
def test_an_issue_says_where_in_the_submission_it_is(expression: str | None, expected: str) -> None:
    verdict = judgement(entry(reading()), entry(reading(1))).verdicts[1]
    assert with_entry_path(Issue("r", "t", expression), verdict).expression == expected


# -- refused whole --------------------------------------------------------------------------------------------------------


def refused(judged: Judgement, outcomes: dict[int, Outcome] | None = None) -> tuple[int, list[str | None]] | None:
    found = refusal(judged, entry_responses(judged, outcomes or {}))
    return found and (found.status, [issue.expression for issue in found.issues])


def test_a_selective_submission_is_not_refused_for_its_entries() -> None:
    items = entry(reading(id="bad")), None
    assert refused(judgement(*items)) is None
    assert refused(judgement(*items, kind="batch", target="base")) is None


@pytest.mark.parametrize(
    ("items", "status", "where"),
    [
        ([entry(reading(id="bad"))], 422, ["Bundle.entry[0].resource.code"]),
        ([entry(reading()), None], 400, ["Bundle.entry[1]"]),
        (
            [entry(reading()), entry(reading(1)), entry(reading(subject={"reference": "Patient/2"}))],
            403,
            ["Bundle.entry[2].resource.subject"],
        ),
        (
            [entry(reading(id="bad"), urn(1)), entry(summary(urn(1))), entry(gmi(id="odd")), None],
            422,
            ["Bundle.entry[0].resource.code", "Bundle.entry[1].resource.hasMember[0].reference", "Bundle.entry[3]"],
        ),
    ],
)
def test_an_atomic_submission_is_refused_with_the_reasons_of_its_refused_entries(
    items: list[Any], status: int, where: list[str]
) -> None:
    assert refused(judgement(*items, kind="transaction", target="base")) == (status, where)


def test_an_atomic_submission_that_was_stored_is_answered() -> None:
    judged = judgement(entry(reading()), entry(reading(id="odd")), kind="transaction", target="base")
    outcomes: dict[int, Outcome] = {0: Stored("Observation/1", created=True), 1: Stored("Observation/2")}
    assert refused(judged, outcomes) is None


def test_an_atomic_submission_whose_fate_is_unknown_answers_503() -> None:
    judged = judgement(entry(reading()), entry(reading(1)), kind="transaction", target="base")
    unknown = Refused(503, (Issue("fate-unknown", "again"),))
    assert refused(judged, {0: unknown, 1: unknown}) == (503, ["Bundle.entry[0]", "Bundle.entry[1]"])


ORDER = StandingOrder("ServiceRequest/o", frozenset({"1.0.0"}), (Schedule(frozenset({"x"}), timedelta(days=14)),))


def test_an_order_that_is_not_met_refuses_any_submission() -> None:
    judged = judgement(entry(report()), orders=(ORDER,), policies=PolicySettings(unsolicited="accept"))
    assert refused(judged) == (422, ["Bundle.entry"])


def test_too_often_is_answered_429_with_the_time_to_wait() -> None:
    last = context().now - timedelta(days=13, hours=23, minutes=59, seconds=59.5)
    policies = PolicySettings(too_often="reject", incomplete="accept", unsolicited="accept")
    judged = judgement(entry(reading()), orders=(ORDER,), policies=policies, last_submission=last)
    found = refusal(judged, entry_responses(judged, {}))
    assert found is not None
    assert (found.status, found.headers) == (429, {"Retry-After": "1"})


def test_nothing_is_refused_whole_when_observing() -> None:
    for kind, target in (("transaction", "base"), ("transaction", "operation")):
        judged = judgement(entry(reading(id="bad")), None, kind=kind, target=target, orders=(ORDER,), observe=True)
        assert refused(judged) is None
