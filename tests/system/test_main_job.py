"""The main job as whole dialogues: a submitter, the real proxy as a process, and a real store behind it."""

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

#: Two weeks, every five minutes.
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
    """Give a client of the upstream itself: what is stored is asked there, not of the proxy."""
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


def statuses(answer) -> Counter:
    return Counter(entry["response"]["status"][:3] for entry in answer.body["entry"])


def locations(answer) -> list[str]:
    return [entry["response"]["location"] for entry in answer.body["entry"]]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_stores_exactly_the_accepted_entries_and_again_nothing(dialect: str, submitter: Client, store: Client) -> None:
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
def test_the_answer_has_the_dialects_type_and_the_entries_order(dialect: str, submitter: Client, store: Client) -> None:
    bundle = submission(dialect, with_orders(store, dialect), readings=5)
    answer = submitter.submit(dialect, bundle)
    assert answer.body["type"] == {"argo": "batch-response", "1.0.0": "transaction-response"}[dialect]
    assert [place.split("/")[0] for place in locations(answer)] == [
        e["resource"]["resourceType"] for e in bundle["entry"]
    ]
    assert all("request" not in entry for entry in answer.body["entry"])
    assert all(entry["response"]["etag"] == 'W/"1"' for entry in answer.body["entry"])


@pytest.mark.parametrize("reference_style", ["urn", "url", "relative"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_summary_points_at_stored_members_after_a_first_and_a_second_submission(
    dialect: str, reference_style: ReferenceStyle, submitter: Client, store: Client
) -> None:
    about = with_orders(store, dialect)
    for readings in (3, 4):  # the second one's summary is another, some of its members are the first one's
        bundle = submission(dialect, about, readings=readings, reference_style=reference_style)
        answer = submitter.submit(dialect, bundle)
        kinds = [entry["resource"]["meta"]["profile"][0].rpartition("/")[2] for entry in bundle["entry"]]
        summary = store.get(locations(answer)[kinds.index("cgm-summary")]).body
        members = [member["reference"] for member in summary["hasMember"]]
        assert members
        for member in members:
            assert store.get(member).status == 200
        assert set(members) <= {place.partition("/_history")[0] for place in locations(answer)}


def test_readings_name_the_stored_device_also_when_it_was_stored_before(submitter: Client, store: Client) -> None:
    about = new_patient(store)
    first = submitter.submit("argo", submission("argo", about, readings=2, summary=False, pdf=False))
    second = submitter.submit("argo", submission("argo", about, readings=4, summary=False, pdf=False))
    assert statuses(second) == {"200": 3, "201": 2}
    device = locations(first)[0].partition("/_history")[0]
    for place in locations(second)[1:]:
        assert store.get(place).body["device"]["reference"] == device


def test_two_submitters_at_the_same_moment_store_each_reading_once(
    upstream: str, running: Running, store: Client, tmp_path
) -> None:
    about = new_patient(store)
    bundle = submission("argo", about, readings=READINGS, summary=False, pdf=False, device=False)
    with proxy(upstream, tmp_path, name="replica") as replica, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda base: Client(base).submit("argo", bundle), (running.url, replica.url)))
    assert stored(store, about) == READINGS
    assert locations(answers[0]) == locations(answers[1])
    assert sum((statuses(answer) for answer in answers), Counter()) == {"201": READINGS, "200": READINGS}


def test_faults_are_refused_entry_by_entry_in_words(submitter: Client, store: Client) -> None:
    about, other = with_orders(store, "argo"), new_patient(store)
    answer = submitter.submit("argo", faulty_submission("argo", about, other))
    unit, member, patient_, unordered = answer.body["entry"][-4:]
    assert [refused["response"]["status"][:3] for refused in (unit, member, patient_, unordered)] == [
        "422",
        "422",
        "403",
        "422",
    ]
    assert all(entry["response"]["status"].startswith("201") for entry in answer.body["entry"][:-4])
    said = [refused["response"]["outcome"]["issue"][0] for refused in (unit, member, patient_, unordered)]
    last = len(answer.body["entry"]) - 1
    assert said[0]["expression"] == [f"Bundle.entry[{last - 3}].resource.valueQuantity.unit"]
    assert 'is "mg/dL"' in said[0]["diagnostics"]
    assert 'wants "mg/dl"' in said[0]["diagnostics"]
    assert "gmi" in said[1]["diagnostics"].lower()
    assert about in said[2]["diagnostics"]
    assert "cgm-sensor-reading-molar" in said[3]["diagnostics"]
    assert stored(store, other) == 0


@pytest.mark.parametrize("digits", ["100.0", "5.60", "0.10", "145"])
def test_numbers_keep_their_digits(digits: str, submitter: Client, store: Client) -> None:
    bundle = submission("argo", new_patient(store), readings=1, summary=False, pdf=False, device=False)
    text = submitter.text(bundle)
    value = submitter.text(bundle["entry"][0]["resource"]["valueQuantity"]["value"])
    answer = submitter.submit("argo", text.replace(f'"value":{value}', f'"value":{digits}'))
    assert f'"value": {digits}' in store.get(locations(answer)[0]).pretty


def test_what_is_stored_is_what_was_sent_but_for_the_identity(submitter: Client, store: Client) -> None:
    bundle = submission("argo", new_patient(store), readings=1, summary=False, pdf=False, device=False)
    sent = bundle["entry"][0]["resource"] | {
        "extension": [{"url": "http://example.org/trend", "valueString": "rising → slowly"}],
        "note": [{"text": "after a meal"}],
        "identifier": [{"system": "http://example.org/app", "value": "r-1"}],
    }
    bundle["entry"][0]["resource"] = sent
    kept = store.get(locations(submitter.submit("argo", bundle))[0]).body
    own, stamp = kept["identifier"]
    assert own == sent["identifier"][0]
    assert stamp["system"] == "urn:ietf:rfc:3986"
    assert stamp["value"].startswith("urn:uuid:")
    assert {k: v for k, v in kept.items() if k not in {"id", "meta", "identifier"}} == {
        k: v for k, v in sent.items() if k not in {"id", "meta", "identifier"}
    }


def test_a_duplicate_inside_a_submission_answers_the_first_ones_location(submitter: Client, store: Client) -> None:
    about = new_patient(store)
    bundle = submission("argo", about, readings=2, summary=False, pdf=False, device=False)
    twin = bundle["entry"][0] | {"fullUrl": f"urn:uuid:{uuid4()}"}
    bundle["entry"].append(twin)
    answer = submitter.submit("argo", bundle)
    assert statuses(answer) == {"201": 2, "200": 1}
    assert locations(answer)[2] == locations(answer)[0]
    assert stored(store, about) == 2


def test_xml_is_taken_and_answered_like_json(submitter: Client, store: Client) -> None:
    about = new_patient(store)
    bundle = submission("argo", about, readings=3, summary=False, pdf=False)
    answer = submitter.submit_xml("argo", bundle)
    assert answer.headers["Content-Type"].startswith("application/fhir+xml")
    assert statuses(answer) == {"201": 4}
    assert statuses(submitter.submit("argo", bundle)) == {"200": 4}


def test_the_capability_statement_says_that_cgm_data_is_received(submitter: Client, store: Client) -> None:
    mine, upstreams = submitter.get("metadata").body, store.get("metadata").body
    assert "http://hl7.org/fhir/uv/cgm/CapabilityStatement/cgm-data-receiver" in mine["instantiates"]
    assert "submit-cgm-bundle" in [operation["name"] for operation in mine["rest"][0]["operation"]]
    assert mine["software"] == upstreams["software"]
