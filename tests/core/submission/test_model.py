"""A submission is built from any JSON: faults of an entry become its issues, faults of the whole a refusal."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.any_json import ENTRIES, VALUES
from support.submissions import (
    LIMITS,
    PATIENT,
    FakeRules,
    bundle,
    context,
    device,
    entry,
    judged,
    localize,
    reading,
    rules_found,
    submitted,
    summary,
    urn,
)

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.rest.create_requests import bundle as written
from cgm_proxy.core.rest.strategy import Strategy
from cgm_proxy.core.submission import reply
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.core.submission.judge import judge, reference_resolver
from cgm_proxy.core.submission.model import (
    Submission,
    index_by_reference,
    operation_bundle,
    submission_from_bundle,
    submission_from_resource,
)
from cgm_proxy.core.submission.plan import Planner, forged, identify
from cgm_proxy.settings.loading import LimitSettings

WRONG: list[Any] = [None, True, 0, -1.5, "", "x", [], [[]], [None], {}, {"x": {}}, {"resourceType": 5}]


def refusal(document: Any, endpoint: str = "base", limits: LimitSettings = LIMITS) -> tuple[int, str]:
    with pytest.raises(RequestRefused) as refused:
        submission_from_bundle(document, DIALECTS_BY_ID["argo"], endpoint, localize, limits)
    return refused.value.status, refused.value.issues[0].rule


@pytest.mark.parametrize("kind", [*WRONG, "document", "Batch", "history", ["batch"]])
@pytest.mark.parametrize("endpoint", ["base", "operation"])
def test_a_bundle_with_a_wrong_type_is_refused(kind: Any, endpoint: str) -> None:
    assert refusal(bundle(entry(reading())) | {"type": kind}, endpoint) == (400, "bundle-type")


def test_a_long_type_is_cut_short_in_the_message() -> None:
    with pytest.raises(RequestRefused) as refused:
        submission_from_bundle(bundle(kind="x" * 100_000), DIALECTS_BY_ID["argo"], "base", localize, LIMITS)
    assert len(refused.value.issues[0].text) < 250


@pytest.mark.parametrize("entries", WRONG)
def test_a_bundle_without_entries_is_refused(entries: Any) -> None:
    document = bundle() | {"entry": entries}
    if isinstance(entries, list) and entries:
        submission = submission_from_bundle(document, DIALECTS_BY_ID["argo"], "base", localize, LIMITS)
        assert [issue.rule for issue in submission.entries[0].issues] == ["entry-object"]
    else:
        assert refusal(document) == (400, "bundle-empty" if entries in ([], None) else "bundle-entry")
    del document["entry"]
    assert refusal(document) == (400, "bundle-empty")


def test_the_message_says_that_entry_must_be_a_list() -> None:
    with pytest.raises(RequestRefused) as refused:
        submission_from_bundle(bundle() | {"entry": {"fullUrl": "x"}}, DIALECTS_BY_ID["argo"], "base", localize, LIMITS)
    assert refused.value.issues[0].text == 'Bundle.entry is {"fullUrl":"x"}; it must be a list of entries'


@pytest.mark.parametrize(
    ("kind", "endpoint", "most"),
    [("batch", "base", 5), ("transaction", "base", 3), ("transaction", "operation", 5), ("batch", "operation", 5)],
)
def test_one_entry_more_than_the_limit_is_refused(kind: str, endpoint: str, most: int) -> None:
    limits = LimitSettings(entries=5, atomic_entries=3)
    whole = bundle(*[entry(reading(n)) for n in range(most)], kind=kind)
    assert len(submission_from_bundle(whole, DIALECTS_BY_ID["argo"], endpoint, localize, limits).entries) == most
    whole["entry"].append(None)
    assert refusal(whole, endpoint, limits) == (413, "too-many-entries")


@pytest.mark.parametrize(
    ("kind", "endpoint", "expected", "atomic"),
    [
        ("batch", "base", "batch", False),
        ("transaction", "base", "transaction", True),
        ("transaction", "operation", "operation", False),
        ("batch", "operation", "operation", False),
    ],
)
def test_only_a_tagged_transaction_is_atomic(kind: str, endpoint: str, expected: str, atomic: bool) -> None:
    submission = submitted(entry(reading()), kind=kind, endpoint=endpoint)
    assert (submission.interaction, submission.atomic) == (expected, atomic)


@pytest.mark.parametrize(
    ("item", "rules"),
    [
        *[(wrong, ["entry-object"]) for wrong in WRONG if not isinstance(wrong, dict)],
        ({}, ["entry-resource", "entry-request"]),
        *[({"resource": wrong, "request": {}}, ["entry-resource"]) for wrong in WRONG],
        *[
            ({"resource": reading(), "request": wrong}, ["entry-request"])
            for wrong in WRONG
            if not isinstance(wrong, dict)
        ],
        *[({"resource": {"resourceType": wrong}, "request": {}}, ["entry-resource"]) for wrong in (5, None, [], {})],
        *[
            ({"resource": reading(), "request": {}, "fullUrl": wrong}, ["entry-full-url"])
            for wrong in WRONG
            if wrong is not None and not isinstance(wrong, str)
        ],
        ({"resource": reading(device={"reference": '"' * 255}), "request": {}}, []),
        ({"resource": reading(device={"reference": '"' * 256}), "request": {}}, ["entry-reference"]),
        ({"resource": reading(note='"reference":"' * 300), "request": {}}, []),
        ({"resource": reading(), "request": {}, "fullUrl": ""}, []),
        ({"resource": reading(), "request": {}, "fullUrl": None}, []),
    ],
)
def test_a_structural_fault_is_an_issue_of_the_entry(item: Any, rules: list[str]) -> None:
    submission = submission_from_bundle(
        bundle(entry(reading()), item), DIALECTS_BY_ID["argo"], "base", localize, LIMITS
    )
    assert [issue.rule for issue in submission.entries[1].issues] == rules
    assert submission.entries[0].issues == ()


@pytest.mark.parametrize("wrong", [*WRONG, {"reference": 5}, {"reference": ["Patient/1"]}, [{"reference": PATIENT}]])
def test_a_subject_of_a_wrong_type_is_no_patient(wrong: Any) -> None:
    submission = submitted(entry(reading() | {"subject": wrong}), entry(device() | {"patient": wrong}))
    assert [each.subject for each in submission.entries] == [None, None]
    assert submission.patient is None


@pytest.mark.parametrize(
    ("reference", "subject"),
    [
        ("Patient/1", "Patient/1"),
        ("https://public.example/fhir/Patient/1", "Patient/1"),
        ("http://up:8081/fhir/Patient/a.b-C9", "Patient/a.b-C9"),
        ("https://public.example/fhirx/Patient/1", None),
        ("https://public.example/fhir//Patient/1", None),
        ("https://other.example/fhir/Patient/1", None),
        ("Patient/1/_history/2", None),
        ("Patient/", None),
        ("Patient/1 ", None),
        ("Patient/1\n", None),
        (" Patient/1", None),
        ("patient/1", None),
        ("Patient/1?x=y", None),
        ("Patient/1,Patient/2", None),
        ("Patient/../Patient/1", None),
        ("Patient/" + "a" * 65, None),
        ("Group/1", None),
        ("urn:uuid:00000000-0000-4000-8000-000000000001", None),
        ("#p", None),
        ("", None),
    ],
)
def test_a_subject_is_a_literal_reference_to_a_patient_of_this_server(reference: str, subject: str | None) -> None:
    assert submitted(entry(reading(subject={"reference": reference}))).entries[0].subject == subject


def test_the_subject_of_a_device_is_its_patient_and_a_performer_does_not_count() -> None:
    submission = submitted(entry(device()), entry(reading(subject=None, performer=[{"reference": PATIENT}])))
    assert [each.subject for each in submission.entries] == [PATIENT, None]


def test_the_submissions_patient_is_the_one_most_entries_are_about() -> None:
    others = [entry(reading(n, subject={"reference": "Patient/2"})) for n in range(2)]
    assert submitted(others[0], *[entry(reading(n)) for n in range(3)], others[1]).patient == PATIENT


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ({"subject": {"reference": "Patient/1"}, "x": [{"reference": "Patient/1"}]}, ("Patient/1",)),
        ({"device": {"reference": "#contained"}}, ()),
        ({"x": {"reference": 5}, "y": {"reference": None}, "z": {"reference": ["a"]}}, ()),
        ({"note": '"reference":"Patient/9"'}, ()),
        ({"x": {"reference": 'urn:"quoted\\"'}}, ('urn:"quoted\\"',)),
        ({"x": {"reference": "a\nb\x01"}}, ("a\nb\x01",)),
        ({"x": {"reference": "ä😀"}}, ("ä😀",)),
        ({"extension": [{"valueReference": {"reference": "Device/1"}}]}, ("Device/1",)),
        ({"contained": [{"subject": {"reference": "Patient/2"}}]}, ("Patient/2",)),
        ({"x": {"reference": ""}}, ("",)),
    ],
)
def test_literal_references_are_found_at_any_depth_and_unescaped(
    resource: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert submitted(entry(resource)).entries[0].references == expected


def test_escapes_in_a_reference_and_its_name_are_resolved() -> None:
    document = decode(b'{"resourceType":"Observation","derivedFrom":[{"r\\u0065ference":"Observation\\/\\u0031"}]}')
    assert submitted(entry(document)).entries[0].references == ("Observation/1",)


def test_a_reference_can_mean_an_entry_by_full_url_or_type_and_id() -> None:
    submission = submitted(
        entry(reading(id="a"), urn(1)), entry(reading(1, id="a")), entry(reading(2), "Observation/a")
    )
    assert index_by_reference(submission.entries) == {urn(1): 0, "Observation/a": 2}


@pytest.mark.parametrize("base", ["", "https://public.example/fhir/", "https://other.example/"])
@pytest.mark.parametrize("name", ["Patient/1", "Patient/1/_history/2", "Patient/1/", "Device/x", "Organization/1"])
def test_an_entry_cannot_be_called_like_a_resource_of_another_type(base: str, name: str) -> None:
    submission = submitted(entry(reading(), base + name))
    assert [issue.rule for issue in submission.entries[0].issues] == ["entry-full-url"]
    assert index_by_reference(submission.entries) == {}
    assert submission.internal_references == {}


@pytest.mark.parametrize(
    "full_url", ["https://other.example/CGM/1", "https://other.example/readings/1", "urn:oid:1.2", "x", ""]
)
def test_a_full_url_that_is_no_restful_url_is_a_name(full_url: str) -> None:
    assert submitted(entry(reading(), full_url)).entries[0].issues == ()


def test_an_absolute_reference_to_this_server_means_what_the_relative_one_means() -> None:
    own, foreign = "https://public.example/fhir/Observation/", "https://other.example/fhir/Observation/"
    member = summary(f"{own}a", f"{own}b", f"{foreign}a", f"{own}b/_history/1")
    submission = submitted(entry(reading(id="a"), urn(1)), entry(member))
    assert submission.internal_references == {f"{own}a": 0}
    assert dict(submission.outer_references) == {
        PATIENT: PATIENT,
        f"{own}b": "Observation/b",
        f"{foreign}a": f"{foreign}a",
        f"{own}b/_history/1": "Observation/b/_history/1",
    }


@pytest.mark.parametrize("wrong", [5, None, [], {}, True])
def test_an_id_of_a_wrong_type_is_ignored(wrong: Any) -> None:
    assert index_by_reference(submitted(entry(reading(id=wrong), urn(1))).entries) == {urn(1): 0}


def test_entries_with_the_same_full_url_are_refused_with_the_entries_that_reference_them() -> None:
    judgement = judged(
        entry(reading(0), urn(1)),
        entry(reading(1), urn(1)),
        entry(summary(urn(1)), urn(2)),
        entry(reading(2)),
        entry(reading(3)),
    )
    unique = ["entry-full-url-unique"]
    assert rules_found(judgement) == [unique, unique, ["reference-refused"], [], []]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_operation_takes_a_bundle_alone_or_in_parameters(wrong: Any) -> None:
    whole = bundle(entry(reading()))
    parameters = {
        "resourceType": "Parameters",
        "parameter": [wrong, {"name": wrong}, {"name": "resource", "resource": whole}],
    }
    assert operation_bundle(whole) is whole
    assert operation_bundle(parameters) is whole
    documents: list[Any] = [
        {"resourceType": "Parameters", "parameter": wrong},
        {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": wrong}]},
        {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": whole}] * 2},
        {"resourceType": wrong},
        {},
    ]
    for document in documents:
        with pytest.raises(RequestRefused) as refused:
            operation_bundle(document)
        assert (refused.value.status, refused.value.issues[0].rule) == (400, "bundle-expected")


def test_the_create_of_one_resource_is_a_submission_with_its_if_none_exist_header() -> None:
    submission = submission_from_resource(reading(), DIALECTS_BY_ID["1.0.0"], localize, "identifier=a|b")
    assert (submission.interaction, submission.atomic, submission.patient, len(submission.entries)) == (
        "create",
        False,
        PATIENT,
        1,
    )
    assert submission.entries[0].request == {"method": "POST", "url": "Observation", "ifNoneExist": "identifier=a|b"}
    assert submission_from_resource({}, DIALECTS_BY_ID["1.0.0"], localize, None).entries[0].issues


# -- any JSON at all ------------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(
    st.lists(ENTRIES, max_size=5) | VALUES,
    st.sampled_from([("batch", "base"), ("transaction", "base"), ("transaction", "operation")]),
    st.booleans(),
)
def test_any_json_is_judged_planned_and_answered(entries: Any, posted: tuple[str, str], observe: bool) -> None:
    kind, endpoint = posted
    with suppress(RequestRefused):
        process(
            submission_from_bundle(
                bundle(kind=kind) | {"entry": entries}, DIALECTS_BY_ID["1.0.0"], endpoint, localize, LIMITS
            ),
            entries,
            observe,
        )


def process(submission: Submission, noise: Any, observe: bool) -> None:
    """Take a submission through every pure stage."""
    stored = {"Device/1": {"resourceType": "Device", "identifier": noise, "udiCarrier": noise}}
    judgement = judge(
        submission, context(rules=FakeRules(always="http://x/any"), observe=observe, stored_resources=stored)
    )
    accepted = identify(judgement.verdicts, submission, reference_resolver(submission, stored), localize)
    planned = Planner(submission, 4, localize).plan(accepted, forged(accepted))
    for wave in planned.waves:
        creates = [planned.creates[index] for group in wave for index in group]
        assert decode(written(creates, planned.aliases, Strategy()))["type"] == "transaction"
    responses = reply.entry_responses(judgement, planned.settled)
    assert len(reply.response_bundle(judgement, responses, "OperationOutcome")["entry"]) == len(submission.entries)
    reply.refusal(judgement, responses)


def test_a_relative_reference_means_the_entry_whose_full_url_ends_with_it() -> None:
    resource = {name: value for name, value in reading().items() if name != "id"}
    submission = submitted(entry(resource, "https://s.example/fhir/Observation/x"))
    assert index_by_reference(submission.entries) == {"https://s.example/fhir/Observation/x": 0, "Observation/x": 0}
