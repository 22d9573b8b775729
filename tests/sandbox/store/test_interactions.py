"""Single interactions. The responses were compared with those of HAPI 8.8.0."""

import pytest
from support.dialogue import SYSTEM, if_none_exist, observation

PATIENT = {"resourceType": "Patient", "id": "p"}


@pytest.fixture
async def stored(fhir):
    """A store with Patient/p and Observation/o, version 1, that refers to it."""
    await fhir("PUT", "/Patient/p", PATIENT)
    await fhir("PUT", "/Observation/o", observation(id="o"))
    return fhir


async def test_a_create_returns_the_location_version_and_time_of_the_stored_resource(fhir):
    response = await fhir("POST", "/Patient", {"resourceType": "Patient", "id": "mine"})
    assert response.status == 201
    assert response.headers["Location"].endswith(f"/fhir/Patient/{response.body['id']}/_history/1")
    assert response.headers["Content-Location"] == response.headers["Location"]
    assert response.headers["ETag"] == 'W/"1"'
    assert response.headers["Last-Modified"].endswith(" GMT")
    assert response.body["id"] != "mine"
    assert response.body["meta"]["versionId"] == "1"


@pytest.mark.parametrize(
    ("prefer", "resource_type"),
    [
        ("return=representation", "Patient"),
        ("return=OperationOutcome", "OperationOutcome"),
        ("respond-async; return=OperationOutcome", "OperationOutcome"),
        ("return=minimal", None),
    ],
)
async def test_prefer_says_what_a_create_returns(fhir, prefer, resource_type):
    response = await fhir("POST", "/Patient", {"resourceType": "Patient"}, Prefer=prefer)
    assert response.status == 201
    assert (response.body or {}).get("resourceType") == resource_type


async def test_numbers_keep_their_digits(stored):
    sent = b'{"resourceType":"Observation","id":"o","status":"final","valueQuantity":{"value":5.60},"x":[100.0,1e-7,7]}'
    await stored("PUT", "/Observation/o", sent)
    response = await stored("GET", "/Observation/o")
    assert '"value":5.60' in response.text
    assert "[100.0,1E-7,7]" in response.text


async def test_an_update_adds_a_version_and_keeps_the_old_one(stored):
    response = await stored("PUT", "/Observation/o", observation("other", id="o"))
    assert (response.status, response.headers["ETag"]) == (200, 'W/"2"')
    assert "Location" not in response.headers
    assert (await stored("GET", "/Observation/o/_history/1")).body["identifier"][0]["value"] == "o"
    assert (await stored("GET", "/Observation/o")).body["identifier"][0]["value"] == "other"


async def test_an_update_adds_a_version_only_if_something_changes_even_if_only_digits(stored):
    same = await stored("PUT", "/Observation/o", observation(id="o"), Prefer="return=OperationOutcome")
    assert same.body["issue"][0]["details"]["coding"][0]["code"] == "SUCCESSFUL_UPDATE_NO_CHANGE"
    assert same.headers["ETag"] == 'W/"1"'
    less = await stored("PUT", "/Observation/o", observation(id="o", valueQuantity={"value": 100, "unit": "mg/dl"}))
    assert less.headers["ETag"] == 'W/"2"'


async def test_a_deleted_resource_is_gone_but_keeps_its_versions_and_can_be_created_again(stored):
    assert (await stored("DELETE", "/Observation/o")).status == 200
    gone = await stored("GET", "/Observation/o")
    assert gone.status == 410
    assert gone.headers["Location"].endswith("/Observation/o/_history/2")
    assert (await stored("GET", "/Observation/o/_history/1")).status == 200
    assert (await stored("GET", "/Observation?_id=o")).body["total"] == 0
    assert (await stored("PUT", "/Observation/o", observation(id="o"))).status == 201
    versions = (await stored("GET", "/Observation/o/_history")).body
    assert [item["request"]["method"] for item in versions["entry"]] == ["PUT", "DELETE", "PUT"]
    assert "resource" not in versions["entry"][1]


async def test_a_history_has_pages(stored):
    await stored("PUT", "/Observation/o", observation("2", id="o"))
    page = (await stored("GET", "/Observation/o/_history?_count=1")).body
    assert (page["total"], len(page["entry"])) == (2, 1)
    next_url = page["link"][1]["url"].split("/fhir")[1]
    assert (await stored("GET", next_url)).body["entry"][0]["resource"]["meta"]["versionId"] == "1"


async def test_a_resource_to_which_another_refers_cannot_be_deleted(stored):
    response = await stored("DELETE", "/Patient/p")
    assert response.status == 409
    assert "First reference found was resource Observation/o in path Observation.subject" in response.diagnostics
    assert (await stored("GET", "/Patient/p")).status == 200


@pytest.mark.parametrize(("etag", "status"), [('W/"1"', 304), ('W/"2"', 200)])
async def test_a_read_returns_304_for_the_version_that_the_client_has(stored, etag, status):
    assert (await stored("GET", "/Observation/o", If_None_Match=etag)).status == status


@pytest.mark.parametrize(("etag", "status"), [('W/"1"', 200), ('W/"7"', 409)])
async def test_an_update_with_if_match_is_refused_for_another_version(stored, etag, status):
    assert (await stored("PUT", "/Patient/p", {**PATIENT, "active": True}, If_Match=etag)).status == status


async def test_head_returns_the_headers_of_get(stored):
    head, get = await stored("HEAD", "/Patient/p"), await stored("GET", "/Patient/p")
    assert (head.status, head.text) == (200, "")
    assert head.headers["ETag"] == get.headers["ETag"]
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


BAD = [
    ("POST", "/Patient", b'{"resourceType":"Patient",', 400, "HAPI-0450"),
    ("POST", "/Patient", b"", 400, "HAPI-0450"),
    ("POST", "/Patient", b"{}", 400, "HAPI-1838"),
    ("POST", "/Patient", b"[]", 400, "HAPI-0450"),
    ("POST", "/Patient", b'{"resourceType":7}', 400, "HAPI-1838"),
    ("POST", "/Patient", b'{"resourceType":"Patient","x":NaN}', 400, "HAPI-0450"),
    ("POST", "/Patient", b'{"resourceType":"Patient","x":"\\ud800"}', 400, "HAPI-0450"),
    (
        "POST",
        "/Patient",
        b'{"resourceType":"Patient","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        400,
        "nested too deeply",
    ),
    ("POST", "/Patient", b'{"resourceType":"Observation"}', 400, "HAPI-1814"),
    ("POST", "/Foo", b'{"resourceType":"Foo"}', 404, "HAPI-0302"),
    ("POST", "/Patient/p", b'{"resourceType":"Patient"}', 400, "HAPI-0365"),
    ("POST", "/Observation", b'{"resourceType":"Observation","effectiveDateTime":"2024-13-01"}', 400, "2024-13-01"),
    ("PUT", "/Patient", b'{"resourceType":"Patient"}', 400, "HAPI-0418"),
    ("PUT", "/Patient/p", b'{"resourceType":"Patient"}', 400, "HAPI-0419"),
    ("PUT", "/Patient/p", b'{"resourceType":"Patient","id":"q"}', 400, "HAPI-0420"),
    ("PUT", "/Patient/77", b'{"resourceType":"Patient","id":"77"}', 400, "HAPI-0960"),
    ("PATCH", "/Patient/p", b"[]", 501, "does not know how to handle PATCH"),
    ("GET", "/Patient/none", None, 404, "HAPI-2001"),
    ("GET", "/Patient/p/_history/9", None, 404, "HAPI-0979"),
    ("GET", "/Patient/none/_history", None, 404, "HAPI-2001"),
    ("GET", "/Foo/1", None, 404, "HAPI-0302"),
    ("GET", "", None, 400, "HAPI-0287"),
    ("POST", "/$submit-cgm-bundle", b'{"resourceType":"Bundle"}', 400, "POST operation[$submit-cgm-bundle]"),
    ("GET", "/Patient/p/$everything", None, 400, "GET operation[Patient/p/$everything]"),
    ("GET", "/Patient/1/2/3", None, 400, "GET operation[Patient/1/2/3]"),
    ("POST", "", b'{"resourceType":"Patient"}', 400, "HAPI-1814"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), BAD)
async def test_a_bad_request_is_refused_with_an_operation_outcome(stored, method, path, body, status, text):
    response = await stored(method, path, body)
    assert response.status == status
    assert response.headers["Content-Type"].startswith("application/fhir+json")
    assert text in response.diagnostics


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "text/plain"}, 400),
        ({"Content_Type": "application/fhir+xml"}, 415),
        ({"Content_Type": "application/json; charset=utf-8"}, 201),
        ({"Accept": "application/fhir+xml"}, 406),
        ({"Accept": "application/fhir+xml, application/fhir+json;q=0.5"}, 201),
        ({"Accept": "application/pdf"}, 201),
    ],
)
async def test_the_store_reads_and_writes_only_json(fhir, headers, status):
    assert (await fhir("POST", "/Patient", b'{"resourceType":"Patient"}', **headers)).status == status


REFERENCES = [
    ("Patient/none", 400, "HAPI-1094: Resource Patient/none not found, specified in path: Observation.subject"),
    ("Device/p", 400, "HAPI-1094"),
    ("Foo/1", 422, "HAPI-0931"),
    ("p", 400, "HAPI-0505"),
    ("urn:uuid:7d1b7a5e-0000-4000-8000-000000000001", 400, "HAPI-0505"),
    ("http://other.example/fhir/Patient/p", 400, "HAPI-0507"),
    ("Patient?identifier=none", 404, "HAPI-1091"),
]


@pytest.mark.parametrize(("reference", "status", "text"), REFERENCES)
async def test_a_reference_that_does_not_resolve_is_refused_and_nothing_stored(stored, reference, status, text):
    response = await stored("POST", "/Observation", observation("new", reference))
    assert (response.status, text in response.diagnostics) == (status, True)
    assert (await stored("GET", f"/Observation?identifier={SYSTEM}|new")).body["total"] == 0


@pytest.mark.parametrize(
    ("reference", "expected"), [("Patient/p", "Patient/p"), ("Patient/p/_history/1", "Patient/p"), ("#here", "#here")]
)
async def test_a_reference_that_resolves_is_stored_without_its_version(stored, reference, expected):
    assert (await stored("POST", "/Observation", observation("new", reference))).body["subject"][
        "reference"
    ] == expected


async def test_a_conditional_reference_is_resolved(stored):
    await stored("PUT", "/Patient/q", {"resourceType": "Patient", "id": "q", "identifier": [{"value": "q1"}]})
    response = await stored("POST", "/Observation", observation("new", "Patient?identifier=q1"))
    assert response.body["subject"]["reference"] == "Patient/q"


async def test_references_in_extensions_and_contained_resources_are_not_checked(stored):
    loose = {"valueReference": {"reference": "Patient/none"}, "url": "http://example.org"}
    contained = {**observation("c", "Patient/none"), "id": "c"}
    response = await stored("POST", "/Observation", observation("new", extension=[loose], contained=[contained]))
    assert response.status == 201


async def test_a_repeated_conditional_create_returns_the_stored_resource(stored):
    first = await stored("POST", "/Observation", observation("c"), If_None_Exist=if_none_exist("c"))
    again = await stored("POST", "/Observation", observation("c"), If_None_Exist=if_none_exist("c"))
    assert (first.status, again.status) == (201, 200)
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == 'W/"1"'


CONDITIONS = [
    (if_none_exist("twice"), 412, "HAPI-0958"),
    (if_none_exist("different"), 400, "HAPI-0929"),
    ("foo=1", 400, "HAPI-0488"),
    ("junk", 400, "HAPI-0518"),
    ("Observation?", 400, "HAPI-0518"),
    ("identifier=,", 400, "HAPI-0518"),
]


@pytest.mark.parametrize(("condition", "status", "text"), CONDITIONS)
async def test_a_condition_that_the_resource_cannot_satisfy_is_refused(stored, condition, status, text):
    await stored("POST", "/Observation", observation("twice"))
    await stored("POST", "/Observation", observation("twice"))
    response = await stored("POST", "/Observation", observation("twice"), If_None_Exist=condition)
    assert (response.status, text in response.diagnostics) == (status, True)
    assert (await stored("GET", f"/Observation?identifier={SYSTEM}|twice")).body["total"] == 2


async def test_conditional_updates_and_deletions_apply_to_the_match(stored):
    url = f"/Observation?identifier={SYSTEM}|u"
    assert (await stored("PUT", url, observation("u"))).status == 201
    changed = await stored("PUT", url, observation("u", status="amended"))
    assert (changed.status, changed.headers["ETag"]) == (200, 'W/"2"')
    assert (await stored("DELETE", url)).status == 200
    assert (await stored("GET", url)).body["total"] == 0


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Host": "c.example:99"}, "http://c.example:99/fhir"),
        ({"X_Forwarded_Host": "a.example"}, "http://a.example/fhir"),
        ({"X_Forwarded_Host": "a.example, b.example", "X_Forwarded_Proto": "https, http"}, "https://a.example/fhir"),
        (
            {"X_Forwarded_Host": "a.example:444", "X_Forwarded_Proto": "https", "X_Forwarded_Prefix": "/r4/x"},
            "https://a.example:444/r4/x",
        ),
        ({"X_Forwarded_Host": "a.example", "X_Forwarded_Port": "8443"}, "http://a.example:8443/fhir"),
    ],
)
async def test_links_begin_with_the_base_url_that_the_client_used(stored, headers, base):
    assert (await stored("GET", "/Patient/p", **headers)).headers["Content-Location"] == f"{base}/Patient/p/_history/1"


async def test_the_capability_statement_lists_what_the_store_supports(fhir):
    body = (await fhir("GET", "/metadata")).body
    rest = body["rest"][0]
    observations = next(item for item in rest["resource"] if item["type"] == "Observation")
    assert (body["resourceType"], body["fhirVersion"]) == ("CapabilityStatement", "4.0.1")
    assert {item["code"] for item in rest["interaction"]} == {"batch", "transaction"}
    assert observations["conditionalCreate"] is True
    assert {"name": "date", "type": "date"} in observations["searchParam"]
