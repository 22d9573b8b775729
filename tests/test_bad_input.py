"""Bad input gets a clear 4xx OperationOutcome or a clear refusal of the entry, and nothing of a bad entry is stored."""

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from client import JSON, XML, Client
from servers import Running, proxy

from cgm_proxy.core.body import encode
from cgm_proxy.sandbox.submissions import patient, submission

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


def nested(levels: int) -> str:
    return '{"extension":[' * levels + "{}" + "]}" * levels


#: What is wrong, the body made from a good one's text, the status and the rule that is named.
WHOLE: list[tuple[str, Callable[[str], str | bytes], int, str]] = [
    ("cut short", lambda t: t[:-20], 400, "json-malformed"),
    ("trailing comma", lambda t: t.replace('"type":', '"x":[1,],"type":', 1), 400, "json-malformed"),
    ("single quotes", lambda t: t.replace('"', "'"), 400, "json-malformed"),
    ("a comment", lambda t: "/* hi */" + t, 400, "unreadable"),
    ("NaN", lambda t: t.replace('"value":', '"value":NaN,"v":', 1), 400, "json-malformed"),
    ("Infinity", lambda t: t.replace('"value":', '"value":-Infinity,"v":', 1), 400, "json-malformed"),
    ("a lone surrogate", lambda t: t.replace("final", "\\ud800", 1), 400, "json-malformed"),
    ("a control character", lambda t: t.replace("final", "fi\x00nal", 1), 400, "json-malformed"),
    ("invalid UTF-8", lambda t: t.encode().replace(b"final", b"fi\xffnal", 1), 400, "json-malformed"),
    ("UTF-16", lambda t: t.encode("utf-16"), 400, "unreadable"),
    (
        "a duplicate key in a resource",
        lambda t: t.replace('"status":"final"', '"status":"final","status":"final"', 1),
        400,
        "json-duplicate-key",
    ),
    (
        "a duplicate key by an escape",
        lambda t: t.replace('"status":', '"st\\u0061tus":"x","status":', 1),
        400,
        "json-duplicate-key",
    ),
    ("two tags", lambda t: t.replace('"meta":', '"meta":{},"meta":', 1), 400, "json-duplicate-key"),
    ("an array", lambda t: f"[{t}]", 400, "json-malformed"),
    ("a string", lambda _: '"Bundle"', 400, "unreadable"),
    (
        "100,000 levels",
        lambda t: t.replace('"entry":', f'"extension":[{nested(100_000)}],"entry":', 1),
        400,
        "too-deep",
    ),
    ("no entries", lambda t: json.dumps({**json.loads(t), "entry": []}), 400, "bundle-empty"),
    (
        "no entry element",
        lambda t: json.dumps({k: v for k, v in json.loads(t).items() if k != "entry"}),
        400,
        "bundle-empty",
    ),
    ("entries that are an object", lambda t: json.dumps({**json.loads(t), "entry": {"a": 1}}), 400, "bundle-entry"),
    ("another type of Bundle", lambda t: t.replace('"batch"', '"collection"', 1), 400, "bundle-type"),
    ("a type that is a number", lambda t: t.replace('"batch"', "7", 1), 400, "bundle-type"),
    ("a body over the limit", lambda t: t.replace("final", "x" * 4_000_001, 1), 413, "too-large"),
    (
        "20,001 entries",
        lambda t: t[: t.index('"entry":')] + '"entry":[' + ",".join(["{}"] * 20_001) + "]}",
        413,
        "too-many-entries",
    ),
    ("malformed XML", lambda _: "<Bundle xmlns='http://hl7.org/fhir'><type", 400, "xml-malformed"),
    ("an entity expansion", lambda _: BOMB, 400, "xml-doctype"),
    (
        "an external entity",
        lambda _: (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><Bundle xmlns="http://hl7.org/fhir">&x;</Bundle>'
        ),
        400,
        "xml-doctype",
    ),
]

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{"&" + chr(97 + i) + ";"}{"&" + chr(97 + i) + ";"}">' for i in range(20))
    + ']><Bundle xmlns="http://hl7.org/fhir"><id value="&u;"/></Bundle>'
)


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


def changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.update(fields)


def resource(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry["resource"].update(fields)


def deep(levels: int) -> Any:
    return json.loads(
        '{"url":"http://x.org/a","extension":[' * levels
        + '{"url":"http://x.org/a","valueBoolean":true}'
        + "]}" * levels
    )


#: What is wrong with the second entry, how it is made, its status and the rule that is named first.
ENTRIES: list[tuple[str, Callable[[dict[str, Any]], Any], str, str]] = [
    ("no resource", lambda e: e.pop("resource"), "400", "entry-resource"),
    ("a resource that is a list", changed(resource=[]), "400", "entry-resource"),
    ("a resource without type", lambda e: e["resource"].pop("resourceType"), "400", "entry-resource"),
    ("a type that is a number", resource(resourceType=7), "400", "entry-resource"),
    ("no request", lambda e: e.pop("request"), "400", "entry-request"),
    ("a request that is a string", changed(request="POST Observation"), "400", "entry-request"),
    ("a fullUrl that is a number", changed(fullUrl=7), "400", "entry-full-url"),
    ("PUT", changed(request={"method": "PUT", "url": "Observation/1"}), "400", "allow-method"),
    ("DELETE", changed(request={"method": "DELETE", "url": "Observation/1"}), "400", "allow-method"),
    ("GET", changed(request={"method": "GET", "url": "Patient"}), "400", "allow-method"),
    ("PATCH", changed(request={"method": "PATCH", "url": "Observation/1"}), "400", "allow-method"),
    ("a method in lower case", changed(request={"method": "post", "url": "Observation"}), "400", "allow-method"),
    ("a method that is a list", changed(request={"method": ["POST"], "url": "Observation"}), "400", "allow-method"),
    (
        "an absolute url",
        changed(request={"method": "POST", "url": "http://evil.example/Observation"}),
        "400",
        "allow-url",
    ),
    ("an operation", changed(request={"method": "POST", "url": "Observation/$meta-add"}), "400", "allow-url"),
    ("another type's url", changed(request={"method": "POST", "url": "Patient"}), "400", "allow-url"),
    ("a url with a query", changed(request={"method": "POST", "url": "Observation?a=b"}), "400", "allow-url"),
    (
        "an ifNoneExist that is a number",
        changed(request={"method": "POST", "url": "Observation", "ifNoneExist": 7}),
        "400",
        "allow-condition",
    ),
    (
        "a Patient",
        changed(resource={"resourceType": "Patient"}, request={"method": "POST", "url": "Patient"}),
        "400",
        "allow-type",
    ),
    (
        "a nested Bundle",
        changed(resource={"resourceType": "Bundle", "type": "batch"}, request={"method": "POST", "url": ""}),
        "400",
        "allow-type",
    ),
    ("no subject", lambda e: e["resource"].pop("subject"), "400", "subject-unknown"),
    ("a subject that is a string", resource(subject="Patient/1"), "400", "subject-unknown"),
    ("a subject by identifier", resource(subject={"identifier": {"value": "1"}}), "400", "subject-unknown"),
    (
        "a subject elsewhere",
        resource(subject={"reference": "http://evil.example/fhir/Patient/1"}),
        "400",
        "subject-unknown",
    ),
    ("another patient", resource(subject={"reference": "Patient/another"}), "403", "subject-other"),
    (
        "a patient whose id only begins alike",
        lambda e: e["resource"]["subject"].update(reference=e["resource"]["subject"]["reference"] + "2"),
        "403",
        "subject-other",
    ),
    (
        "a version of the patient",
        lambda e: e["resource"]["subject"].update(reference=e["resource"]["subject"]["reference"] + "/_history/1"),
        "400",
        "subject-unknown",
    ),
    (
        "no CGM code",
        resource(code={"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}, meta={}),
        "422",
        "profile-unknown",
    ),
    ("a code that is a string", resource(code="99504-3", meta={}), "422", "profile-unknown"),
    ("too deep", resource(extension=[deep(30)]), "400", "too-deep"),
    (
        "an identity that is another's",
        resource(
            identifier=[{"system": "urn:ietf:rfc:3986", "value": "urn:uuid:0b0fb34f-4fd6-8e10-9d6e-0cf1a7ad2cb1"}]
        ),
        "422",
        "identity-forged",
    ),
    (
        "a reference to nothing that is stored",
        resource(device={"reference": "Device/none-such"}),
        "400",
        "upstream-refused",
    ),
]


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


#: Wrong types in each element of a reading; base R4 refuses them by element.
WRONG: list[tuple[str, Any]] = [
    (element, value)
    for element in (
        "id",
        "meta",
        "status",
        "category",
        "code",
        "effectiveDateTime",
        "valueQuantity",
        "identifier",
        "device",
        "note",
    )
    for value in (7, True, "x y ", [], {}, [[]], [None], {"a": {"b": []}}, "")
]


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
