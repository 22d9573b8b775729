"""Dialogues of single interactions; the answers were compared with HAPI 8.8.0's."""

import pytest
from support.dialogue import SYSTEM, if_none, observation

PATIENT = {"resourceType": "Patient", "id": "p"}


@pytest.fixture
async def stored(fhir):
    """A store with Patient/p and Observation/o, version 1, that refers to it."""
    await fhir("PUT", "/Patient/p", PATIENT)
    await fhir("PUT", "/Observation/o", observation(id="o"))
    return fhir


async def test_a_create_answers_with_the_location_version_and_time_of_what_is_stored(fhir):
    reply = await fhir("POST", "/Patient", {"resourceType": "Patient", "id": "mine"})
    assert reply.status == 201
    assert reply.headers["Location"].endswith(f"/fhir/Patient/{reply.body['id']}/_history/1")
    assert reply.headers["Content-Location"] == reply.headers["Location"]
    assert reply.headers["ETag"] == 'W/"1"'
    assert reply.headers["Last-Modified"].endswith(" GMT")
    assert reply.body["id"] != "mine"
    assert reply.body["meta"]["versionId"] == "1"


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
    reply = await fhir("POST", "/Patient", {"resourceType": "Patient"}, Prefer=prefer)
    assert reply.status == 201
    assert (reply.body or {}).get("resourceType") == resource_type


async def test_numbers_keep_their_digits(stored):
    sent = b'{"resourceType":"Observation","id":"o","status":"final","valueQuantity":{"value":5.60},"x":[100.0,1e-7,7]}'
    await stored("PUT", "/Observation/o", sent)
    reply = await stored("GET", "/Observation/o")
    assert '"value":5.60' in reply.text
    assert "[100.0,1E-7,7]" in reply.text


async def test_an_update_is_a_new_version_and_the_old_one_stays(stored):
    reply = await stored("PUT", "/Observation/o", observation("other", id="o"))
    assert (reply.status, reply.headers["ETag"]) == (200, 'W/"2"')
    assert "Location" not in reply.headers
    assert (await stored("GET", "/Observation/o/_history/1")).body["identifier"][0]["value"] == "o"
    assert (await stored("GET", "/Observation/o")).body["identifier"][0]["value"] == "other"


async def test_an_update_that_changes_nothing_makes_no_version_but_one_of_a_digit_does(stored):
    same = await stored("PUT", "/Observation/o", observation(id="o"), Prefer="return=OperationOutcome")
    assert same.body["issue"][0]["details"]["coding"][0]["code"] == "SUCCESSFUL_UPDATE_NO_CHANGE"
    assert same.headers["ETag"] == 'W/"1"'
    less = await stored("PUT", "/Observation/o", observation(id="o", valueQuantity={"value": 100, "unit": "mg/dl"}))
    assert less.headers["ETag"] == 'W/"2"'


async def test_a_deleted_resource_is_gone_and_its_versions_stay_until_it_is_made_again(stored):
    assert (await stored("DELETE", "/Observation/o")).status == 200
    gone = await stored("GET", "/Observation/o")
    assert gone.status == 410
    assert gone.headers["Location"].endswith("/Observation/o/_history/2")
    assert (await stored("GET", "/Observation/o/_history/1")).status == 200
    assert (await stored("GET", "/Observation?_id=o")).body["total"] == 0
    assert (await stored("PUT", "/Observation/o", observation(id="o"))).status == 201
    versions = (await stored("GET", "/Observation/o/_history")).body
    assert [one["request"]["method"] for one in versions["entry"]] == ["PUT", "DELETE", "PUT"]
    assert "resource" not in versions["entry"][1]


async def test_a_history_has_pages(stored):
    await stored("PUT", "/Observation/o", observation("2", id="o"))
    page = (await stored("GET", "/Observation/o/_history?_count=1")).body
    assert (page["total"], len(page["entry"])) == (2, 1)
    following = page["link"][1]["url"].split("/fhir")[1]
    assert (await stored("GET", following)).body["entry"][0]["resource"]["meta"]["versionId"] == "1"


async def test_a_resource_that_is_referred_to_is_not_deleted(stored):
    reply = await stored("DELETE", "/Patient/p")
    assert reply.status == 409
    assert "First reference found was resource Observation/o in path Observation.subject" in reply.diagnostics
    assert (await stored("GET", "/Patient/p")).status == 200


@pytest.mark.parametrize(("known", "status"), [('W/"1"', 304), ('W/"2"', 200)])
async def test_a_read_answers_304_for_the_version_that_the_client_has(stored, known, status):
    assert (await stored("GET", "/Observation/o", If_None_Match=known)).status == status


@pytest.mark.parametrize(("wanted", "status"), [('W/"1"', 200), ('W/"7"', 409)])
async def test_an_update_with_if_match_is_refused_for_another_version(stored, wanted, status):
    assert (await stored("PUT", "/Patient/p", {**PATIENT, "active": True}, If_Match=wanted)).status == status


async def test_head_answers_as_get_without_a_body(stored):
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
async def test_what_is_wrong_is_refused_with_an_operation_outcome(stored, method, path, body, status, text):
    reply = await stored(method, path, body)
    assert reply.status == status
    assert reply.headers["Content-Type"].startswith("application/fhir+json")
    assert text in reply.diagnostics


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
async def test_the_store_speaks_json_only(fhir, headers, status):
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
    reply = await stored("POST", "/Observation", observation("new", reference))
    assert (reply.status, text in reply.diagnostics) == (status, True)
    assert (await stored("GET", f"/Observation?identifier={SYSTEM}|new")).body["total"] == 0


@pytest.mark.parametrize(
    ("reference", "kept"), [("Patient/p", "Patient/p"), ("Patient/p/_history/1", "Patient/p"), ("#here", "#here")]
)
async def test_a_reference_that_resolves_is_kept_without_version(stored, reference, kept):
    assert (await stored("POST", "/Observation", observation("new", reference))).body["subject"]["reference"] == kept


async def test_a_conditional_reference_is_resolved(stored):
    await stored("PUT", "/Patient/q", {"resourceType": "Patient", "id": "q", "identifier": [{"value": "q1"}]})
    reply = await stored("POST", "/Observation", observation("new", "Patient?identifier=q1"))
    assert reply.body["subject"]["reference"] == "Patient/q"


async def test_references_in_extensions_and_contained_resources_are_not_checked(stored):
    loose = {"valueReference": {"reference": "Patient/none"}, "url": "http://example.org"}
    contained = {**observation("c", "Patient/none"), "id": "c"}
    reply = await stored("POST", "/Observation", observation("new", extension=[loose], contained=[contained]))
    assert reply.status == 201


async def test_a_conditional_create_stores_once_and_then_names_what_is_stored(stored):
    first = await stored("POST", "/Observation", observation("c"), If_None_Exist=if_none("c"))
    again = await stored("POST", "/Observation", observation("c"), If_None_Exist=if_none("c"))
    assert (first.status, again.status) == (201, 200)
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == 'W/"1"'


CONDITIONS = [
    (if_none("twice"), 412, "HAPI-0958"),
    (if_none("different"), 400, "HAPI-0929"),
    ("foo=1", 400, "HAPI-0488"),
    ("junk", 400, "HAPI-0518"),
    ("Observation?", 400, "HAPI-0518"),
    ("identifier=,", 400, "HAPI-0518"),
]


@pytest.mark.parametrize(("condition", "status", "text"), CONDITIONS)
async def test_a_condition_that_cannot_hold_is_refused(stored, condition, status, text):
    await stored("POST", "/Observation", observation("twice"))
    await stored("POST", "/Observation", observation("twice"))
    reply = await stored("POST", "/Observation", observation("twice"), If_None_Exist=condition)
    assert (reply.status, text in reply.diagnostics) == (status, True)
    assert (await stored("GET", f"/Observation?identifier={SYSTEM}|twice")).body["total"] == 2


async def test_conditional_updates_and_deletions_work_on_the_one_match(stored):
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
async def test_links_begin_with_the_address_that_the_client_used(stored, headers, base):
    assert (await stored("GET", "/Patient/p", **headers)).headers["Content-Location"] == f"{base}/Patient/p/_history/1"


async def test_the_capability_statement_says_what_there_is(fhir):
    body = (await fhir("GET", "/metadata")).body
    rest = body["rest"][0]
    observations = next(one for one in rest["resource"] if one["type"] == "Observation")
    assert (body["resourceType"], body["fhirVersion"]) == ("CapabilityStatement", "4.0.1")
    assert {one["code"] for one in rest["interaction"]} == {"batch", "transaction"}
    assert observations["conditionalCreate"] is True
    assert {"name": "date", "type": "date"} in observations["searchParam"]
