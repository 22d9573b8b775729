"""Which requests are submissions, by path and by content; the cases include attempts to get around the check."""

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

#: Spellings of the base that some server or gateway routes to it.
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

#: The most thorough clean-up leads elsewhere; a server that decodes later, less or in another order ends up at the base.
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

#: Paths that no server routes to the base or the operation.
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
def test_every_spelling_of_the_base_is_inspected(path: str) -> None:
    assert submission_endpoint(path, BASES) == "base"


@pytest.mark.parametrize("path", OPERATIONS)
def test_every_spelling_of_the_operation_is_inspected(path: str) -> None:
    assert submission_endpoint(path, BASES) == "operation"


@pytest.mark.parametrize("path", OTHERS)
def test_other_paths_are_not_inspected(path: str) -> None:
    assert submission_endpoint(path, BASES, content=True) in {None, "create"}
    assert submission_endpoint(path, BASES) is None


@pytest.mark.parametrize("kind", ["Observation", "DiagnosticReport", "Device"])
def test_single_creates_are_inspected_only_with_detection_by_content(kind: str) -> None:
    assert submission_endpoint(f"/fhir/{kind}/", BASES, content=True) == "create"
    assert submission_endpoint(f"/fhir/{kind}", BASES) is None


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
def test_each_of_several_bases_is_recognised(bases: tuple[str, ...], path: str, expected: str | None) -> None:
    assert submission_endpoint(path, bases) == expected


def test_a_path_that_could_mean_several_endpoints_means_the_strictest() -> None:
    assert submission_endpoint("/fhir/;%2F..%2Fx/$submit-cgm-bundle", BASES) == "operation"


def test_a_path_with_too_many_spellings_is_refused() -> None:
    with pytest.raises(RequestRefused) as refused:
        submission_endpoint("/fhir/%" + "25" * 4000 + "2e", BASES)
    assert (refused.value.status, refused.value.issues[0].rule) == (400, "path-ambiguous")


@given(st.text("/.;%2eEfF5cCx\\?#:", max_size=30))
def test_any_path_has_an_endpoint_or_is_refused(path: str) -> None:
    path_segments(path)
    with suppress(RequestRefused):
        assert submission_endpoint(path, BASES) in {None, "base", "operation"}


@given(st.lists(st.sampled_from(["/", "/.", "/x/..", "//", ";a=b", "/%2e", "%2F"]), max_size=4))
def test_additions_without_effect_still_mean_the_base(additions: list[str]) -> None:
    assert submission_endpoint("/fhir" + "".join(additions), BASES) == "base"


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
def test_a_bundle_has_the_dialect_of_its_tags_system_and_code(tag: dict[str, Any], dialect: str | None) -> None:
    for tags in ([tag], [{"system": "http://other", "code": "x"}, tag], [None, 5, "x", [], {}, tag]):
        found = tagged_dialect(tagged(tags))
        assert (found and found.id) == dialect


WRONG: list[Any] = [None, True, 5, "x", [], {}, [[]], [None], [5], ["x"], [{"tag": 5}], {"tag": {"tag": []}}]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_tag_of_a_wrong_type_is_ignored(wrong: Any) -> None:
    documents = [{"meta": wrong}, {"meta": {"tag": wrong}}, {"meta": {"tag": [{"system": wrong, "code": wrong}]}}]
    for document in documents:
        assert tagged_dialect({"resourceType": "Bundle"} | document) is None
    assert tagged_dialect({"resourceType": wrong, "meta": {"tag": [ARGO]}}) is None


@pytest.mark.parametrize("meta", [[{"tag": [ARGO]}], {"tag": ARGO}, [{"tag": ARGO}]])
def test_a_tag_counts_if_a_lenient_server_would_read_it(meta: Any) -> None:
    found = tagged_dialect({"resourceType": "Bundle", "meta": meta})
    assert found is not None
    assert found.id == "argo"


def test_a_tagged_resource_other_than_a_bundle_is_no_submission() -> None:
    assert tagged_dialect(tagged([ARGO]) | {"resourceType": "Parameters"}) is None


def bundle_of(*resources: Any) -> dict[str, Any]:
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
def test_codes_of_the_ballot_mark_a_bundle_sent_to_the_operation(resources: list[Any], dialect: str) -> None:
    assert operation_dialect(bundle_of(*resources)).id == dialect


@pytest.mark.parametrize(
    ("document", "dialect"),
    [
        (coded("http://loinc.org", "99504-3"), "1.0.0"),
        (coded("http://loinc.org", "8480-6"), None),
        (coded("http://argo.run/cgm/CodeSystem/cgm-summary-codes-temporary", "cgm-summary"), "argo"),
        (bundle_of(coded("x", "y"), coded("http://loinc.org", "14745-4")), "1.0.0"),
        (bundle_of(coded(TEMPORARY, "cgm-summary")), "1.0.0-ballot"),
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
def test_untagged_content_has_the_dialect_of_its_profiles_and_codes(
    document: dict[str, Any], dialect: str | None
) -> None:
    found = content_dialect({"resourceType": "Observation"} | document)
    assert (found and found.id) == dialect


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_content_of_a_wrong_type_is_no_cgm_data(wrong: Any) -> None:
    documents: list[dict[str, Any]] = [
        {"entry": wrong},
        {"entry": [{"resource": wrong}]},
        bundle_of({"code": wrong}),
        bundle_of({"code": {"coding": wrong}}),
        bundle_of({"code": {"coding": [{"system": wrong, "code": wrong}]}}),
        bundle_of({"meta": wrong}),
        bundle_of({"meta": {"profile": wrong}}),
        bundle_of({"meta": {"profile": [wrong]}}),
    ]
    for document in documents:
        document = {"resourceType": "Bundle"} | document
        assert content_dialect(document) is None
        assert operation_dialect(document).id == "1.0.0"
