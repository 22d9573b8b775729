"""What is a submission, by path and by content; the cases are ways around the check that somebody could try."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.submission.detection import (
    content_dialect,
    operation_dialect,
    path_segments,
    spellings,
    submission_endpoint,
    tagged_dialect,
)

BASES = ("/fhir",)

#: Spellings of the base that some server or gateway takes for it.
BASE_SPELLINGS = [
    "/fhir",
    "/fhir/",
    "//fhir",
    "/fhir//",
    "/./fhir",
    "/fhir/.",
    "/fhir/./",
    "/x/../fhir",
    "/fhir/x/..",
    "/../fhir",
    "/fhir/Patient/../../fhir",
    "/%66hir",
    "/%66%48ir".replace("%48", "%68"),
    "/fhir%2F",
    "/fhir%2f",
    "/%2Ffhir",
    "/fhir%252F",
    "/fhir%25252F",
    "/fhir/%2e",
    "/fhir/%2E/",
    "/fhir/x/%2e%2e",
    "/fhir/x/%2E.",
    "/fhir/x%2f..",
    "/fhir;a=b",
    "/fhir;a=b/",
    "/fhir/;a=b",
    "/;x/fhir",
    "/fhir%3Ba=b",
    "/fhir\\",
    "\\fhir",
    "/fhir%5C",
    "/fhir?_format=json",
    "/fhir/?a=/fhir/Patient",
    "/fhir#x",
    "/fhir%23x",
    "/fhir%3Fx=y",
    "/fhir%20",
    "http://example.org/fhir",
    "HTTP://example.org:8080/fhir/",
    "http://user:secret@example.org//fhir",
    "http://example.org/fhir?x=http://y/z",
    "http://[::1]/fhir",
    "http://[broken/fhir",
]

#: The strictest reading of these leads elsewhere; a server that decodes later, less or in another order is led to the base.
AMBIGUOUS_BASES = [
    "/fhir;%2Fx",  # parameters are cut off before decoding (Tomcat)
    "/fhir;%2F..%2F..",
    "/fhir/%252e%252e/..",  # decoded once, `%2e%2e` is a name
    "/fhir/%252e%252e/x/../..",
    "/fhir//..",  # an empty segment is one (RFC 3986), or it is merged away
    "/fhir/;x/..",
    "/fhir/\\/..",
    "//fhir/a://..",  # no absolute form: it begins with a slash
    "/x#/../fhir",
]

#: Neither the base nor the operation, for any server.
OTHERS = [
    "/",
    "",
    "*",
    "/fhirx",
    "/fhi",
    "/FHIR",
    "/x/fhir",
    "/fhir/Observation",
    "/fhir/Observation/_search",
    "/fhir/metadata",
    "/fhir/..",
    "/fhir/$submit-cgm-bundle-x",
    "/fhir/$validate",
    "/fhir/Observation/$submit-cgm-bundle",
    "/fhir/$submit-cgm-bundle/x",
    "/fhir2/$submit-cgm-bundle",
    "http://fhir/",
    "http://example.org",
    "/other?x=/fhir",
]

OPERATIONS = [
    "/fhir/$submit-cgm-bundle",
    "/fhir/%24submit-cgm-bundle",
    "/fhir/%2524submit-cgm-bundle",
    "/fhir/$submit%2Dcgm-bundle",
    "//fhir//$submit-cgm-bundle//",
    "/fhir/$submit-cgm-bundle;x?y=z",
    "/fhir/./$submit-cgm-bundle",
    "/fhir/Patient/../$submit-cgm-bundle",
    "/fhir;x/$submit-cgm-bundle",
    "/fhir%2F$submit-cgm-bundle",
    "/fhir\\$submit-cgm-bundle",
    "/fhir/;%2Fx/$submit-cgm-bundle",
    "http://example.org/fhir/$submit-cgm-bundle",
]


@pytest.mark.parametrize("path", BASE_SPELLINGS + AMBIGUOUS_BASES)
def test_every_spelling_of_the_base_is_looked_at(path: str) -> None:
    assert submission_endpoint("POST", path, BASES) == "base"


@pytest.mark.parametrize("path", OPERATIONS)
def test_every_spelling_of_the_operation_is_looked_at(path: str) -> None:
    assert submission_endpoint("POST", path, BASES) == "operation"


@pytest.mark.parametrize("path", OTHERS)
def test_another_path_is_not_looked_at(path: str) -> None:
    assert submission_endpoint("POST", path, BASES, content=True) in {None, "create"}
    assert submission_endpoint("POST", path, BASES) is None


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "", "POSTX"])
def test_another_method_submits_nothing(method: str) -> None:
    assert submission_endpoint(method, "/fhir", BASES) is None
    assert submission_endpoint(method, "/fhir/$submit-cgm-bundle", BASES) is None


def test_a_lenient_server_may_read_a_method_in_lower_case() -> None:
    assert submission_endpoint("post", "/fhir", BASES) == "base"


@pytest.mark.parametrize("kind", ["Observation", "DiagnosticReport", "Device"])
def test_single_creates_are_looked_at_with_detection_by_content_alone(kind: str) -> None:
    assert submission_endpoint("POST", f"/fhir/{kind}/", BASES, content=True) == "create"
    assert submission_endpoint("POST", f"/fhir/{kind}", BASES) is None


@pytest.mark.parametrize(
    ("bases", "path", "expected"),
    [
        (("",), "/", "base"),
        (("",), "", "base"),
        (("",), "//", "base"),
        (("",), "/$submit-cgm-bundle", "operation"),
        (("",), "/fhir", None),
        (("/",), "/?x=y", "base"),
        (("/public", "/fhir/R4"), "/public", "base"),
        (("/public", "/fhir/R4"), "/fhir/R4/", "base"),
        (("/public", "/fhir/R4"), "/fhir/", None),
        (("/public", "/fhir/R4"), "/fhir/R4/$submit-cgm-bundle", "operation"),
        (("/a", "/a/b"), "/a/b", "base"),
        (("/a%20b",), "/a%20b/", "base"),
        (("/a%20b",), "/a b", "base"),
    ],
)
def test_each_base_path_is_known(bases: tuple[str, ...], path: str, expected: str | None) -> None:
    assert submission_endpoint("POST", path, bases) == expected


def test_what_could_be_several_targets_is_taken_for_the_strictest() -> None:
    assert submission_endpoint("POST", "/fhir/;%2F..%2Fx/$submit-cgm-bundle", BASES) == "operation"


def test_a_path_that_can_be_read_in_countless_ways_is_refused() -> None:
    with pytest.raises(RequestRefused) as refused:
        submission_endpoint("POST", "/fhir/%" + "25" * 4000 + "2e", BASES)
    assert (refused.value.status, refused.value.issues[0].rule) == (400, "path-ambiguous")


@given(st.text("/.;%2eEfF5cCx\\?#:", max_size=30))
def test_any_path_is_read_or_refused(path: str) -> None:
    path_segments(path)
    with suppress(RequestRefused):
        assert submission_endpoint("POST", path, BASES) in {None, "base", "operation"}


@given(st.lists(st.sampled_from(["/", "/.", "/x/..", "//", ";a=b", "/%2e", "%2F"]), max_size=4))
def test_what_leads_nowhere_leaves_the_base_the_base(additions: list[str]) -> None:
    assert submission_endpoint("POST", "/fhir" + "".join(additions), BASES) == "base"


def test_a_plain_path_has_one_spelling() -> None:
    assert spellings("/fhir/Observation?x=//y;z") == ["/fhir/Observation"]


ARGO = {"system": "http://argo.run/cgm/CodeSystem/cgm", "code": "cgm-submission-bundle"}
TAGS = [
    (ARGO, "argo"),
    ({"system": ARGO["system"], "code": "cgm-data-submission-bundle"}, "argo"),
    ({"system": "http://hl7.org/uv/cgm/CodeSystem/cgm", "code": "cgm-data-submission-bundle"}, "0.1.0"),
    ({"system": "http://hl7.org/uv/cgm/CodeSystem/cgm", "code": "cgm-submission-bundle"}, None),
    ({"system": "http://hl7.org/fhir/uv/cgm/CodeSystem/cgm", "code": "cgm-data-submission-bundle"}, None),
    ({"system": "http://argo.run/cgm/CodeSystem/cgm/", "code": "cgm-submission-bundle"}, None),
    ({"code": "cgm-submission-bundle"}, None),
    ({"system": ARGO["system"]}, None),
    (ARGO | {"display": "x", "extension": [1]}, "argo"),
]


def tagged(tag: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "meta": {"tag": tag}, "type": "batch"}


@pytest.mark.parametrize(("tag", "dialect"), TAGS)
def test_a_bundle_is_known_by_the_system_and_code_of_a_tag(tag: dict[str, Any], dialect: str | None) -> None:
    for tags in ([tag], [{"system": "http://other", "code": "x"}, tag], [None, 5, "x", [], {}, tag]):
        found = tagged_dialect(tagged(tags))
        assert (found and found.id) == dialect


WRONG: list[Any] = [None, True, 5, "x", [], {}, [[]], [None], [5], ["x"], [{"tag": 5}], {"tag": {"tag": []}}]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_tag_of_a_wrong_type_marks_nothing(wrong: Any) -> None:
    places = [{"meta": wrong}, {"meta": {"tag": wrong}}, {"meta": {"tag": [{"system": wrong, "code": wrong}]}}]
    for place in places:
        assert tagged_dialect({"resourceType": "Bundle"} | place) is None
    assert tagged_dialect({"resourceType": wrong, "meta": {"tag": [ARGO]}}) is None


@pytest.mark.parametrize("meta", [[{"tag": [ARGO]}], {"tag": ARGO}, [{"tag": ARGO}]])
def test_a_tag_that_a_lenient_server_reads_marks_as_well(meta: Any) -> None:
    found = tagged_dialect({"resourceType": "Bundle", "meta": meta})
    assert found is not None
    assert found.id == "argo"


def test_a_tagged_resource_that_is_no_bundle_is_no_submission() -> None:
    assert tagged_dialect(tagged([ARGO]) | {"resourceType": "Parameters"}) is None


def holding(*resources: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "entry": [{"resource": resource} for resource in resources]}


def coded(system: str, code: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "code": {"coding": [{"system": system, "code": code}]}}


TEMPORARY = "http://hl7.org/fhir/uv/cgm/CodeSystem/cgm-summary-codes-temporary"


@pytest.mark.parametrize(
    ("resources", "dialect"),
    [
        ([], "1.0.0"),
        ([coded("http://loinc.org", "107931-8")], "1.0.0"),
        ([coded(TEMPORARY, "cgm-summary")], "1.0.0-ballot"),
        ([coded("http://loinc.org", "99504-3"), coded(TEMPORARY, "days-of-wear")], "1.0.0-ballot"),
        ([None, 5, [], coded("x", "y")], "1.0.0"),
    ],
)
def test_the_operations_dialects_differ_by_the_ballots_own_codes(resources: list[Any], dialect: str) -> None:
    assert operation_dialect(holding(*resources)).id == dialect


@pytest.mark.parametrize(
    ("document", "dialect"),
    [
        (coded("http://loinc.org", "99504-3"), "1.0.0"),
        (coded("http://loinc.org", "8480-6"), None),
        (coded("http://argo.run/cgm/CodeSystem/cgm-summary-codes-temporary", "cgm-summary"), "argo"),
        (holding(coded("x", "y"), coded("http://loinc.org", "14745-4")), "1.0.0"),
        (holding(coded(TEMPORARY, "cgm-summary")), "1.0.0-ballot"),
        ({"meta": {"profile": ["http://hl7.org/uv/cgm/StructureDefinition/cgm-summary"]}}, "0.1.0"),
        ({"meta": {"profile": ["http://hl7.org/uv/cgmx/StructureDefinition/cgm-summary"]}}, None),
        ({"meta": {"profile": ["http://hl7.org/fhir/uv/cgm/StructureDefinition/cgm-device|1.0.0"]}}, "1.0.0"),
        ({"code": [{"coding": {"system": "http://loinc.org", "code": "99504-3"}}]}, "1.0.0"),
        ({"meta": [{"profile": "http://argo.run/cgm/StructureDefinition/cgm-device"}]}, "argo"),
        (
            {
                "resourceType": "Bundle",
                "entry": {"resource": [{"code": {"coding": {"system": "http://loinc.org", "code": "99504-3"}}}]},
            },
            "1.0.0",
        ),
    ],
)
def test_content_tells_the_dialect_by_codes_and_claims(document: dict[str, Any], dialect: str | None) -> None:
    found = content_dialect({"resourceType": "Observation"} | document)
    assert (found and found.id) == dialect


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_content_of_a_wrong_type_is_no_cgm_data(wrong: Any) -> None:
    places: list[dict[str, Any]] = [
        {"entry": wrong},
        {"entry": [{"resource": wrong}]},
        holding({"code": wrong}),
        holding({"code": {"coding": wrong}}),
        holding({"code": {"coding": [{"system": wrong, "code": wrong}]}}),
        holding({"meta": wrong}),
        holding({"meta": {"profile": wrong}}),
        holding({"meta": {"profile": [wrong]}}),
    ]
    for place in places:
        document = {"resourceType": "Bundle"} | place
        assert content_dialect(document) is None
        assert operation_dialect(document).id == "1.0.0"
