"""Bad input gets a clear 4xx OperationOutcome or a clear refusal of the entry, and nothing of a bad entry is stored."""

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

#: The proxy under test takes less than by default, so that the limits can be reached quickly.
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


@pytest.mark.parametrize(("made", "status", "rule"), [row[1:] for row in WHOLE], ids=[row[0] for row in WHOLE])
def test_a_whole_request_is_refused_with_an_outcome(
    made, status: int, rule: str, submitter: Client, about: str, sandbox: str
) -> None:
    body = made(text(about))
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    answer = submitter.request("POST", "", data, Content_Type=XML if data.startswith((b"<",)) else JSON)
    assert (answer.status, answer.rules) == (status, [rule])
    assert answer.body["issue"][0]["diagnostics"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 0


def test_a_gzip_bomb_is_refused_at_the_limit(submitter: Client) -> None:
    bomb = gzip.compress(b" " * 400_000_000, 9)
    answer = submitter.request("POST", "", bomb, Content_Type=JSON, Content_Encoding="gzip")
    assert (answer.status, answer.rules) == (413, ["too-large"])


@pytest.mark.parametrize(
    ("encoding", "data", "status"),
    [("gzip", b"no gzip", 400), ("br", b"{}", 415), ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400)],
)
def test_a_body_that_cannot_be_inflated_is_refused(encoding: str, data: bytes, status: int, submitter: Client) -> None:
    answer = submitter.request("POST", "", data, Content_Type=JSON, Content_Encoding=encoding)
    assert (answer.status, answer.rules) == (status, ["content-encoding"])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/pdf", "x"])
def test_a_submission_of_a_wrong_content_type_is_refused(
    content_type: str, submitter: Client, about: str, sandbox: str
) -> None:
    answer = submitter.request("POST", "", text(about).encode(), Content_Type=content_type)
    assert (answer.status, answer.rules) == (415, ["content-type"])
    assert Client(sandbox).total(f"Observation?subject={about}") == 0


@pytest.mark.parametrize(("spoil", "status", "rule"), [row[1:] for row in ENTRIES], ids=[row[0] for row in ENTRIES])
def test_a_bad_entry_is_refused_and_the_good_one_stored(
    spoil, status: str, rule: str, submitter: Client, about: str, sandbox: str
) -> None:
    bundle = good(about, 3)
    spoil(bundle["entry"][1])
    answer = submitter.submit("argo", bundle)
    assert answer.status == 200
    first, bad, last = (entry["response"] for entry in answer.body["entry"])
    assert first["status"].startswith("201")
    assert last["status"].startswith("201")
    assert bad["status"].startswith(status)
    issue = bad["outcome"]["issue"][0]
    assert issue["details"]["coding"][0]["code"] == rule
    assert issue["expression"][0].startswith("Bundle.entry[1]")
    assert Client(sandbox).total(f"Observation?subject={about}") == 2


@pytest.mark.parametrize(("element", "value"), WRONG, ids=[f"{e}={json.dumps(v)}" for e, v in WRONG])
def test_a_wrong_type_anywhere_refuses_that_entry_alone(
    element: str, value: Any, submitter: Client, about: str, sandbox: str
) -> None:
    bundle = good(about, 2)
    bundle["entry"][1]["resource"][element] = value
    answer = submitter.submit("argo", bundle)
    good_one, bad = (entry["response"] for entry in answer.body["entry"])
    assert good_one["status"].startswith("201")
    assert bad["status"][:3] in {"400", "422"}
    assert bad["outcome"]["issue"][0]["diagnostics"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 1


def test_entries_that_are_no_objects_are_refused_each(submitter: Client, about: str) -> None:
    bundle = good(about, 1)
    bundle["entry"] += [None, 7, "x", [], True]
    answer = submitter.submit("argo", bundle)
    assert [entry["response"]["status"][:3] for entry in answer.body["entry"]] == ["201"] + ["400"] * 5


def test_two_entries_of_one_full_url_are_both_refused(submitter: Client, about: str) -> None:
    bundle = good(about, 3)
    bundle["entry"][2]["fullUrl"] = bundle["entry"][1]["fullUrl"]
    answer = submitter.submit("argo", bundle)
    assert [entry["response"]["status"][:3] for entry in answer.body["entry"]] == ["201", "400", "400"]


def test_a_circle_of_references_is_refused(submitter: Client, about: str, sandbox: str) -> None:
    bundle = good(about, 3)
    one, two = bundle["entry"][1:]
    one["resource"]["derivedFrom"] = [{"reference": two["fullUrl"]}]
    two["resource"]["derivedFrom"] = [{"reference": one["fullUrl"]}]
    answer = submitter.submit("argo", bundle)
    assert [entry["response"]["status"][:3] for entry in answer.body["entry"]] == ["201", "422", "422"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 1


def test_a_patient_that_the_server_does_not_have_is_refused_by_name(submitter: Client) -> None:
    answer = submitter.submit("argo", good("Patient/nobody"))
    for entry in answer.body["entry"]:
        assert entry["response"]["status"].startswith("400")
        assert "Patient/nobody" in entry["response"]["outcome"]["issue"][0]["diagnostics"]


def test_an_atomic_submission_with_one_bad_entry_stores_nothing(submitter: Client, about: str, sandbox: str) -> None:
    bundle = good(about, 3) | {"type": "transaction"}
    bundle["entry"][1]["resource"]["valueQuantity"]["unit"] = "mg/dL"
    answer = submitter.submit("argo", bundle)
    assert answer.status == 422
    assert answer.body["issue"][0]["expression"] == ["Bundle.entry[1].resource.valueQuantity.unit"]
    assert Client(sandbox).total(f"Observation?subject={about}") == 0


def test_an_atomic_submission_that_is_good_is_stored_whole(submitter: Client, about: str, sandbox: str) -> None:
    answer = submitter.submit("argo", good(about, 3) | {"type": "transaction"})
    assert answer.body["type"] == "transaction-response"
    assert Client(sandbox).total(f"Observation?subject={about}") == 3


def test_the_operation_takes_nothing_but_a_bundle(submitter: Client) -> None:
    for body in (
        b"",
        b"{}",
        b'{"resourceType":"Patient"}',
        b'{"resourceType":"Parameters","parameter":[{"name":"x"}]}',
    ):
        answer = submitter.post("$submit-cgm-bundle", body)
        assert answer.status == 400
        assert answer.rules
