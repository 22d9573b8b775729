"""The main job with real servers: a submitter, the proxy as a process, and a store behind it."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from support.client import Client
from support.servers import Running, proxy

from cgm_proxy.sandbox.simulation.resources import ReferenceStyle
from cgm_proxy.sandbox.simulation.submissions import faulty_submission, patient, standing_orders, submission

DIALECTS = ("argo", "1.0.0")

#: Two weeks, one every five minutes.
READINGS = 4032


@pytest.fixture(scope="module")
def running(upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with proxy(upstream, tmp_path_factory.mktemp("main-job")) as server:
        yield server


@pytest.fixture
def submitter(running: Running) -> Client:
    return Client(running.url)


@pytest.fixture
def store(upstream: str) -> Client:
    """Return a client of the upstream itself, to see what is stored independently of the proxy."""
    return Client(upstream)


def new_patient(store: Client) -> str:
    name = f"p{uuid4().hex[:12]}"
    assert store.put(f"Patient/{name}", patient(name)).status in {200, 201}
    return f"Patient/{name}"


def with_orders(store: Client, dialect: str) -> str:
    reference = new_patient(store)
    for order in standing_orders(dialect, reference):
        assert store.put(f"ServiceRequest/{order['id']}", order).status in {200, 201}
    return reference


def stored(store: Client, reference: str) -> int:
    return store.total(f"Observation?subject={reference}")


def statuses(response) -> Counter:
    return Counter(entry["response"]["status"][:3] for entry in response.body["entry"])


def locations(response) -> list[str]:
    return [entry["response"]["location"] for entry in response.body["entry"]]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_submission_is_stored_once_even_if_it_is_sent_twice(dialect: str, submitter: Client, store: Client) -> None:
    about = with_orders(store, dialect)
    bundle = submission(dialect, about, readings=READINGS)

    first = submitter.submit(dialect, bundle)
    assert statuses(first) == {"201": len(bundle["entry"])}
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    assert stored(store, about) == observations

    again = submitter.submit(dialect, bundle)
    assert statuses(again) == {"200": len(bundle["entry"])}
    assert locations(again) == locations(first)
    assert stored(store, about) == observations


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_response_has_the_type_of_the_dialect_and_the_order_of_the_entries(
    dialect: str, submitter: Client, store: Client
) -> None:
    bundle = submission(dialect, with_orders(store, dialect), readings=5)
    response = submitter.submit(dialect, bundle)
    assert response.body["type"] == {"argo": "batch-response", "1.0.0": "transaction-response"}[dialect]
    assert [location.split("/")[0] for location in locations(response)] == [
        e["resource"]["resourceType"] for e in bundle["entry"]
    ]
    assert all("request" not in entry for entry in response.body["entry"])
    assert all(entry["response"]["etag"] == 'W/"1"' for entry in response.body["entry"])


@pytest.mark.parametrize("reference_style", ["urn", "url", "relative"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_summary_refers_to_stored_members_after_a_first_and_a_second_submission(
    dialect: str, reference_style: ReferenceStyle, submitter: Client, store: Client
) -> None:
    about = with_orders(store, dialect)
    for readings in (3, 4):  # the second summary is a new one, but shares some of its members with the first
        bundle = submission(dialect, about, readings=readings, reference_style=reference_style)
        response = submitter.submit(dialect, bundle)
        kinds = [entry["resource"]["meta"]["profile"][0].rpartition("/")[2] for entry in bundle["entry"]]
        summary = store.get(locations(response)[kinds.index("cgm-summary")]).body
        members = [member["reference"] for member in summary["hasMember"]]
        assert members
        for member in members:
            assert store.get(member).status == 200
        assert set(members) <= {location.partition("/_history")[0] for location in locations(response)}


def test_readings_refer_to_the_stored_device_even_if_it_was_stored_before(submitter: Client, store: Client) -> None:
    about = new_patient(store)
    first = submitter.submit("argo", submission("argo", about, readings=2, summary=False, pdf=False))
    second = submitter.submit("argo", submission("argo", about, readings=4, summary=False, pdf=False))
    assert statuses(second) == {"200": 3, "201": 2}
    device = locations(first)[0].partition("/_history")[0]
    for location in locations(second)[1:]:
        assert store.get(location).body["device"]["reference"] == device


def test_two_submitters_at_the_same_time_store_each_reading_once(
    upstream: str, running: Running, store: Client, tmp_path
) -> None:
    about = new_patient(store)
    bundle = submission("argo", about, readings=READINGS, summary=False, pdf=False, device=False)
    with proxy(upstream, tmp_path, name="replica") as replica, ThreadPoolExecutor(2) as pool:
        responses = list(pool.map(lambda base: Client(base).submit("argo", bundle), (running.url, replica.url)))
    assert stored(store, about) == READINGS
    assert locations(responses[0]) == locations(responses[1])
    assert sum((statuses(response) for response in responses), Counter()) == {"201": READINGS, "200": READINGS}


def test_faulty_entries_are_refused_one_by_one_with_explanations(submitter: Client, store: Client) -> None:
    about, other = with_orders(store, "argo"), new_patient(store)
    response = submitter.submit("argo", faulty_submission("argo", about, other))
    refused = [entry["response"] for entry in response.body["entry"][-4:]]
    assert [response["status"][:3] for response in refused] == [
        "422",
        "422",
        "403",
        "422",
    ]
    assert all(entry["response"]["status"].startswith("201") for entry in response.body["entry"][:-4])
    unit, member, other_patient, unordered = (response["outcome"]["issue"][0] for response in refused)
    last = len(response.body["entry"]) - 1
    assert unit["expression"] == [f"Bundle.entry[{last - 3}].resource.valueQuantity.unit"]
    assert 'is "mg/dL"' in unit["diagnostics"]
    assert 'requires "mg/dl"' in unit["diagnostics"]
    assert "gmi" in member["diagnostics"].lower()
    assert about in other_patient["diagnostics"]
    assert "cgm-sensor-reading-molar" in unordered["diagnostics"]
    assert stored(store, other) == 0


@pytest.mark.parametrize("digits", ["100.0", "5.60", "0.10", "145"])
def test_numbers_keep_their_digits(digits: str, submitter: Client, store: Client) -> None:
    bundle = submission("argo", new_patient(store), readings=1, summary=False, pdf=False, device=False)
    text = submitter.text(bundle)
    value = submitter.text(bundle["entry"][0]["resource"]["valueQuantity"]["value"])
    response = submitter.submit("argo", text.replace(f'"value":{value}', f'"value":{digits}'))
    assert f'"value": {digits}' in store.get(locations(response)[0]).pretty


def test_a_resource_is_stored_as_sent_except_for_the_added_identifier(submitter: Client, store: Client) -> None:
    bundle = submission("argo", new_patient(store), readings=1, summary=False, pdf=False, device=False)
    sent = bundle["entry"][0]["resource"] | {
        "extension": [{"url": "http://example.org/trend", "valueString": "rising → slowly"}],
        "note": [{"text": "after a meal"}],
        "identifier": [{"system": "http://example.org/app", "value": "r-1"}],
    }
    bundle["entry"][0]["resource"] = sent
    stored_ = store.get(locations(submitter.submit("argo", bundle))[0]).body
    own, added = stored_["identifier"]
    assert own == sent["identifier"][0]
    assert added["system"] == "urn:ietf:rfc:3986"
    assert added["value"].startswith("urn:uuid:")
    assert {k: v for k, v in stored_.items() if k not in {"id", "meta", "identifier"}} == {
        k: v for k, v in sent.items() if k not in {"id", "meta", "identifier"}
    }


def test_a_duplicate_in_a_submission_gets_the_location_of_the_first(submitter: Client, store: Client) -> None:
    about = new_patient(store)
    bundle = submission("argo", about, readings=2, summary=False, pdf=False, device=False)
    bundle["entry"].append(bundle["entry"][0] | {"fullUrl": f"urn:uuid:{uuid4()}"})
    response = submitter.submit("argo", bundle)
    assert statuses(response) == {"201": 2, "200": 1}
    assert locations(response)[2] == locations(response)[0]
    assert stored(store, about) == 2


def test_xml_is_accepted_and_answered_like_json(submitter: Client, store: Client) -> None:
    about = new_patient(store)
    bundle = submission("argo", about, readings=3, summary=False, pdf=False)
    response = submitter.submit_xml("argo", bundle)
    assert response.headers["Content-Type"].startswith("application/fhir+xml")
    assert statuses(response) == {"201": 4}
    assert statuses(submitter.submit("argo", bundle)) == {"200": 4}


def test_the_capability_statement_declares_a_cgm_data_receiver(submitter: Client, store: Client) -> None:
    proxied, upstream = submitter.get("metadata").body, store.get("metadata").body
    assert "http://hl7.org/fhir/uv/cgm/CapabilityStatement/cgm-data-receiver" in proxied["instantiates"]
    assert "submit-cgm-bundle" in [operation["name"] for operation in proxied["rest"][0]["operation"]]
    assert proxied["software"] == upstream["software"]
