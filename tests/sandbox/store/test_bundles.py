"""Batches and transactions. The responses are those of HAPI 8.8.0, except where a test says otherwise."""

import pytest
from support.dialogue import SYSTEM, bundle, entry, if_none_exist, observation

U = [f"urn:uuid:00000000-0000-4000-8000-{i:012d}" for i in range(6)]


@pytest.fixture
async def stored(fhir):
    """A store with Patient/p and one Observation whose identifier is `known`."""
    await fhir("PUT", "/Patient/p", {"resourceType": "Patient", "id": "p"})
    await fhir("PUT", "/Observation/known", observation("known", id="known"))
    return fhir


async def count(fhir, value):
    return (await fhir("GET", f"/Observation?_summary=count&identifier={SYSTEM}|{value}")).body["total"]


def statuses(response):
    return [item["response"]["status"][:3] for item in response.body["entry"]]


async def test_a_batch_answers_the_entries_in_order(stored):
    entries = [
        entry(None, "GET", "Patient/p"),
        entry(observation("b1")),
        entry(observation("b2", "Patient/none")),
        entry(observation("known"), ifNoneExist=if_none_exist("known")),
        entry({"resourceType": "Patient", "id": "x"}, "PUT", "Patient/x"),
        entry(None, "DELETE", "Patient/x"),
        entry(None, "GET", "Patient/none"),
        entry(None, "GET", f"Observation?identifier={SYSTEM}|b1"),
        entry(None, "POST", "Observation"),
    ]
    response = await stored("POST", "", bundle("batch", *entries))
    assert (response.status, response.body["type"]) == (200, "batch-response")
    assert statuses(response) == ["200", "201", "400", "200", "201", "204", "404", "200", "400"]
    answers = [item["response"] for item in response.body["entry"]]
    assert answers[1]["location"].startswith("Observation/")
    assert answers[1]["etag"] == "1"
    assert "lastModified" in answers[1]
    assert "HAPI-1094" in answers[2]["outcome"]["issue"][0]["diagnostics"]
    assert answers[3]["location"] == "Observation/known/_history/1"
    assert response.body["entry"][7]["resource"]["total"] == 1
    assert (await count(stored, "b1"), await count(stored, "b2")) == (1, 0)


async def test_a_batch_does_not_resolve_references_between_its_entries(stored):
    entries = [entry(observation("m"), full_url=U[0]), entry(observation("s", hasMember=[{"reference": U[0]}]))]
    response = await stored("POST", "", bundle("batch", *entries))
    assert statuses(response) == ["201", "400"]
    assert "HAPI-0541" in response.body["entry"][1]["response"]["outcome"]["issue"][0]["diagnostics"]


async def test_a_transaction_resolves_references_in_any_direction_and_element(stored):
    everywhere = observation(
        "all",
        U[1],
        hasMember=[{"reference": U[2]}],
        extension=[{"url": "http://example.org", "valueReference": {"reference": U[1]}}],
        contained=[{"resourceType": "Observation", "subject": {"reference": U[1]}}],
    )
    entries = [
        entry(everywhere, full_url=U[0]),
        entry({"resourceType": "Patient"}, full_url=U[1]),
        entry(observation("known"), full_url=U[2], ifNoneExist=if_none_exist("known")),
    ]
    response = await stored("POST", "", bundle("transaction", *entries), Prefer="return=representation")
    assert statuses(response) == ["201", "201", "200"]
    first, patient = response.body["entry"][0]["resource"], response.body["entry"][1]["response"]["location"]
    reference = {"reference": patient.removesuffix("/_history/1")}
    assert first["subject"] == first["extension"][0]["valueReference"] == first["contained"][0]["subject"] == reference
    assert first["hasMember"] == [{"reference": "Observation/known"}]


async def test_a_transaction_resolves_full_urls_and_the_ids_of_posted_resources(stored):
    """HAPI resolves urn:uuid and ids, but not http URLs; the store resolves these too, as FHIR demands."""
    entries = [
        entry({"resourceType": "Patient", "id": "tmp"}, full_url="https://example.org/Patient/tmp"),
        entry(observation("a", "Patient/tmp")),
        entry(observation("b", "https://example.org/Patient/tmp")),
    ]
    response = await stored("POST", "", bundle("transaction", *entries), Prefer="return=representation")
    patient = f"Patient/{response.body['entry'][0]['resource']['id']}"
    assert [item["resource"]["subject"]["reference"] for item in response.body["entry"][1:]] == [patient, patient]


async def test_a_transaction_may_contain_a_cycle_of_references(stored):
    entries = [
        entry(observation("a", hasMember=[{"reference": U[1]}]), full_url=U[0]),
        entry(observation("b", hasMember=[{"reference": U[0]}]), full_url=U[1]),
    ]
    assert (await stored("POST", "", bundle("transaction", *entries))).status == 200


GOOD = entry(observation("good"))
FAULTS = [
    (entry(observation("x", "Patient/none")), 400, "HAPI-1094"),
    (entry(observation("x", U[5])), 400, "HAPI-0541"),
    (entry(observation("x"), ifNoneExist=if_none_exist("different")), 412, "HAPI-0539"),
    (entry(observation("x"), ifNoneExist="foo=1"), 400, "HAPI-0488"),
    (entry(observation("x", "Patient?identifier=none")), 404, "HAPI-1091"),
    (entry(observation("x", effectiveDateTime="yesterday")), 400, "yesterday"),
    (entry(None, "POST", "Observation"), 400, "HAPI-0543"),
    (entry(observation("x"), "FOO"), 400, "Unknown HTTPVerb code 'FOO'"),
    (entry(observation("x"), "POST", "Foo/1/2"), 400, "HAPI-2006"),
    (entry({"resourceType": "Foo"}), 400, "HAPI-1684"),
    (entry({"resourceType": "Patient", "id": "p"}, "PUT", "Patient/p", ifMatch='W/"9"'), 409, "HAPI-0989"),
    (entry({"resourceType": "Patient", "id": "9"}, "PUT", "Patient/9"), 400, "HAPI-0960"),
    ({"resource": observation("x")}, 400, "HAPI-0529"),
    ({"resource": "x", "request": {"method": "POST"}}, 400, "malformed"),
]


@pytest.mark.parametrize(("faulty", "status", "text"), FAULTS)
async def test_an_error_undoes_the_whole_transaction_and_names_its_entry(stored, faulty, status, text):
    response = await stored("POST", "", bundle("transaction", GOOD, entry(None, "DELETE", "Observation/known"), faulty))
    assert (response.status, text in response.diagnostics) == (status, True)
    assert response.body["issue"][0]["expression"] == ["Bundle.entry[2]"]
    assert (await count(stored, "good"), await count(stored, "known")) == (0, 1)


async def test_a_failing_read_does_not_fail_the_other_entries(stored):
    response = await stored("POST", "", bundle("transaction", GOOD, entry(None, "GET", "Patient/none")))
    assert statuses(response) == ["201", "404"]


async def test_deletions_are_processed_first_and_reads_last(stored):
    entries = [
        entry(None, "GET", f"Observation?identifier={SYSTEM}|known"),
        entry(observation("known"), ifNoneExist=if_none_exist("known")),
        entry(None, "DELETE", "Observation/known"),
    ]
    response = await stored("POST", "", bundle("transaction", *entries))
    assert statuses(response) == ["200", "201", "204"]
    assert response.body["entry"][0]["resource"]["entry"][0]["resource"]["id"] != "known"


async def test_a_transaction_may_delete_a_resource_together_with_those_that_refer_to_it(stored):
    both = [entry(None, "DELETE", "Patient/p"), entry(None, "DELETE", "Observation/known")]
    assert (await stored("POST", "", bundle("transaction", both[0]))).status == 409
    assert statuses(await stored("POST", "", bundle("transaction", *both))) == ["204", "204"]


async def test_repeated_conditional_creates_become_one(stored):
    """As on HAPI, the repeated entry has no response of its own, and references to it become references to the first."""
    entries = [
        entry(observation("d"), full_url=U[0], ifNoneExist=if_none_exist("d")),
        entry(observation("d"), full_url=U[1], ifNoneExist=if_none_exist("d")),
        entry(observation("s", hasMember=[{"reference": U[1]}])),
    ]
    response = await stored("POST", "", bundle("transaction", *entries), Prefer="return=representation")
    first, summary = (item["resource"] for item in response.body["entry"])
    assert summary["hasMember"] == [{"reference": f"Observation/{first['id']}"}]
    assert await count(stored, "d") == 1


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([entry(observation("d"), ifNoneExist=if_none_exist("d"))] * 2, "HAPI-2008"),
        ([entry(observation("d"), full_url=U[0]), entry(observation("e"), full_url=U[0])], "HAPI-0534"),
        ([entry({"resourceType": "Patient", "id": "x"}, "PUT", "Patient/x")] * 2, "HAPI-0535"),
    ],
)
async def test_entries_that_cannot_be_distinguished_are_refused(stored, entries, text):
    response = await stored("POST", "", bundle("transaction", *entries))
    assert (response.status, text in response.diagnostics) == (400, True)


@pytest.mark.parametrize("kind", ["collection", "document", "searchset", 7, {}])
async def test_only_batches_and_transactions_are_processed(fhir, kind):
    response = await fhir("POST", "", bundle(kind))
    assert (response.status, "HAPI-0527" in response.diagnostics) == (400, True)


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_an_empty_bundle_gets_an_empty_response(fhir, kind):
    response = await fhir("POST", "/", {"resourceType": "Bundle", "type": kind})
    assert (response.status, response.body["type"], "entry" in response.body) == (200, f"{kind}-response", False)


@pytest.mark.parametrize("entries", ["x", {}, [1], [{"request": 1}], [{"request": {"method": 1}}], [{"fullUrl": 1}]])
@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_a_malformed_bundle_is_refused(fhir, kind, entries):
    assert (await fhir("POST", "", {"resourceType": "Bundle", "type": kind, "entry": entries})).status == 400
