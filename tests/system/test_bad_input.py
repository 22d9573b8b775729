"""Bad input gets a clear OperationOutcome, as a 4xx or for the entry, and a bad entry is not stored."""

import gzip
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from support.bad_input import ENTRIES, WHOLE, WRONG
from support.client import JSON, XML, Client
from support.servers import Running, proxy

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.sandbox.simulation.submissions import patient, submission

TAG = {"system": "http://argo.run/cgm/CodeSystem/cgm", "code": "cgm-submission-bundle"}

#: Limits below the defaults, so that tests reach them quickly.
LIMITS = {"limits.body_bytes": 4_000_000, "limits.entries": 20_000, "limits.atomic_entries": 50, "limits.depth": 40}


@pytest.fixture(scope="module")
def running(sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with proxy(sandbox, tmp_path_factory.mktemp("bad-input"), LIMITS) as server:
        yield server


@pytest.fixture
def submitter(running: Running) -> Client:
    return Client(running.url)


@pytest.fixture
def about(sandbox: str) -> str:
    name = f"p{uuid4().hex[:12]}"
    Client(sandbox).put(f"Patient/{name}", patient(name))
    return f"Patient/{name}"


def good(about: str, readings: int = 2) -> dict[str, Any]:
    return submission("argo", about, readings=readings, summary=False, pdf=False, device=False)


def text(about: str) -> str:
    return encode(good(about)).decode()


@pytest.mark.parametrize(("spoil", "status", "rule"), [row[1:] for row in WHOLE], ids=[row[0] for row in WHOLE])
def test_a_bad_request_is_refused_with_an_outcome(
    spoil, status: int, rule: str, submitter: Client, about: str, sandbox: str
) -> None:
    body = spoil(text(about))
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    response = submitter.request("POST", "", data, Content_Type=XML if data.startswith((b"<",)) else JSON)
    assert (response.status, response.rules) == (status, [rule])
    assert response.body["issue"][0]["diagnostics"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 0


def test_a_gzip_bomb_is_refused_at_the_limit(submitter: Client) -> None:
    bomb = gzip.compress(b" " * 400_000_000, 9)
    response = submitter.request("POST", "", bomb, Content_Type=JSON, Content_Encoding="gzip")
    assert (response.status, response.rules) == (413, ["too-large"])


@pytest.mark.parametrize(
    ("encoding", "data", "status"),
    [("gzip", b"no gzip", 400), ("br", b"{}", 415), ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400)],
)
def test_a_body_that_cannot_be_inflated_is_refused(encoding: str, data: bytes, status: int, submitter: Client) -> None:
    response = submitter.request("POST", "", data, Content_Type=JSON, Content_Encoding=encoding)
    assert (response.status, response.rules) == (status, ["content-encoding"])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/pdf", "x"])
def test_a_submission_with_a_wrong_content_type_is_refused(
    content_type: str, submitter: Client, about: str, sandbox: str
) -> None:
    response = submitter.request("POST", "", text(about).encode(), Content_Type=content_type)
    assert (response.status, response.rules) == (415, ["content-type"])
    assert Client(sandbox).total(f"Observation?subject={about}") == 0


@pytest.mark.parametrize(("spoil", "status", "rule"), [row[1:] for row in ENTRIES], ids=[row[0] for row in ENTRIES])
def test_a_bad_entry_is_refused_and_the_good_one_stored(
    spoil, status: str, rule: str, submitter: Client, about: str, sandbox: str
) -> None:
    bundle = good(about, 3)
    spoil(bundle["entry"][1])
    response = submitter.submit("argo", bundle)
    assert response.status == 200
    first, bad, last = (entry["response"] for entry in response.body["entry"])
    assert first["status"].startswith("201")
    assert last["status"].startswith("201")
    assert bad["status"].startswith(status)
    issue = bad["outcome"]["issue"][0]
    assert issue["details"]["coding"][0]["code"] == rule
    assert issue["expression"][0].startswith("Bundle.entry[1]")
    assert Client(sandbox).total(f"Observation?subject={about}") == 2


@pytest.mark.parametrize(("element", "value"), WRONG, ids=[f"{e}={json.dumps(v)}" for e, v in WRONG])
def test_an_element_of_a_wrong_type_refuses_only_its_entry(
    element: str, value: Any, submitter: Client, about: str, sandbox: str
) -> None:
    bundle = good(about, 2)
    bundle["entry"][1]["resource"][element] = value
    response = submitter.submit("argo", bundle)
    first, bad = (entry["response"] for entry in response.body["entry"])
    assert first["status"].startswith("201")
    assert bad["status"][:3] in {"400", "422"}
    assert bad["outcome"]["issue"][0]["diagnostics"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 1


def test_entries_that_are_not_objects_are_refused(submitter: Client, about: str) -> None:
    bundle = good(about, 1)
    bundle["entry"] += [None, 7, "x", [], True]
    response = submitter.submit("argo", bundle)
    assert [entry["response"]["status"][:3] for entry in response.body["entry"]] == ["201"] + ["400"] * 5


def test_two_entries_with_the_same_full_url_are_both_refused(submitter: Client, about: str) -> None:
    bundle = good(about, 3)
    bundle["entry"][2]["fullUrl"] = bundle["entry"][1]["fullUrl"]
    response = submitter.submit("argo", bundle)
    assert [entry["response"]["status"][:3] for entry in response.body["entry"]] == ["201", "400", "400"]


def test_a_cycle_of_references_is_refused(submitter: Client, about: str, sandbox: str) -> None:
    bundle = good(about, 3)
    second, third = bundle["entry"][1:]
    second["resource"]["derivedFrom"] = [{"reference": third["fullUrl"]}]
    third["resource"]["derivedFrom"] = [{"reference": second["fullUrl"]}]
    response = submitter.submit("argo", bundle)
    assert [entry["response"]["status"][:3] for entry in response.body["entry"]] == ["201", "422", "422"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 1


def test_the_refusal_of_an_unknown_patient_names_the_patient(submitter: Client) -> None:
    response = submitter.submit("argo", good("Patient/nobody"))
    for entry in response.body["entry"]:
        assert entry["response"]["status"].startswith("400")
        assert "Patient/nobody" in entry["response"]["outcome"]["issue"][0]["diagnostics"]


def test_an_atomic_submission_with_one_bad_entry_stores_nothing(submitter: Client, about: str, sandbox: str) -> None:
    bundle = good(about, 3) | {"type": "transaction"}
    bundle["entry"][1]["resource"]["valueQuantity"]["unit"] = "mg/dL"
    response = submitter.submit("argo", bundle)
    assert response.status == 422
    assert response.body["issue"][0]["expression"] == ["Bundle.entry[1].resource.valueQuantity.unit"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 0


def test_a_good_atomic_submission_is_stored_whole(submitter: Client, about: str, sandbox: str) -> None:
    response = submitter.submit("argo", good(about, 3) | {"type": "transaction"})
    assert response.body["type"] == "transaction-response"
    assert Client(sandbox).total(f"Observation?subject={about}") == 3


def test_the_operation_accepts_only_a_bundle(submitter: Client) -> None:
    for body in (
        b"",
        b"{}",
        b'{"resourceType":"Patient"}',
        b'{"resourceType":"Parameters","parameter":[{"name":"x"}]}',
    ):
        response = submitter.post("$submit-cgm-bundle", body)
        assert response.status == 400
        assert response.rules
