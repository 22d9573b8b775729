"""Requests of many kinds, for two sets of equal resources in one FHIR server: `~` stands for the set's name.

The set `d` is requested directly, the set `p` through the proxy. Their ids have the same length.
"""

import gzip
import json
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

JSON = ("Content-Type", "application/fhir+json")
XML = ("Content-Type", "application/fhir+xml")
FORM = ("Content-Type", "application/x-www-form-urlencoded")


class Request(NamedTuple):
    method: str
    target: str
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    #: Send the body in chunks instead of with a length.
    chunked: bool = False


def body(resource: object) -> bytes:
    return json.dumps(resource).encode()


def patient(number: int, **more: object) -> dict[str, object]:
    identity = {"identifier": [{"system": "urn:untouched", "value": f"zq~{number}"}], "active": True}
    return {"resourceType": "Patient", "id": f"zq~{number}", **identity, "name": [{"family": "Müller~"}], **more}


def reading(number: int) -> dict[str, object]:
    code = {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]}
    return {
        "resourceType": "Observation",
        "id": f"zq~r{number}",
        "status": "final",
        "code": code,
        "subject": {"reference": "Patient/zq~1"},
        "effectiveDateTime": f"2024-05-01T10:{number:02}:00Z",
        "valueQuantity": {
            "value": 100 + number,
            "unit": "mg/dl",
            "system": "http://unitsofmeasure.org",
            "code": "mg/dL",
        },
    }


def bundle(kind: str, *entries: dict[str, object]) -> bytes:
    return body({"resourceType": "Bundle", "type": kind, "entry": list(entries)})


def stored() -> list[Request]:
    """Return the requests that store a set of resources."""
    people = [Request("PUT", f"/Patient/zq~{n}", (JSON,), body(patient(n))) for n in range(1, 4)]
    readings = [Request("PUT", f"/Observation/zq~r{n}", (JSON,), body(reading(n))) for n in range(12)]
    again = Request("PUT", "/Patient/zq~1", (JSON,), body(patient(1, gender="female", birthDate="1970-01-01")))
    return [*people, *readings, again]


ACCEPTS = [
    (),
    (("Accept", "application/fhir+json"),),
    (("Accept", "application/fhir+xml"),),
    (("Accept", "text/html"),),
    (("Accept", "x/y"),),
]
CODINGS = [(), (("Accept-Encoding", "gzip"),)]
READS = [
    "/Patient/zq~1",
    "/Patient/zq~1/_history/1",
    "/Patient/zq~1/_history/2",
    "/Patient/zq~1/_history",
    "/Patient/none",
    "/Patient/zq~1/_history/9",
    "/Observation/zq~r1",
    "/Patient/zq~1?_format=xml",
    "/Patient/zq~1?_format=json&_pretty=true",
    "/Patient/zq~1?_summary=true",
    "/Patient/zq~1?_elements=name",
    "/Patient/zq~1?_format=application/fhir%2Bxml",
]
SEARCHES = [
    "/Patient?identifier=urn:untouched|zq~1",
    "/Patient?identifier=urn%3Auntouched%7Czq~2",
    "/Patient?family=M%C3%BCller~",
    "/Patient?family=Müller~".encode().decode("latin-1").replace("Ã¼", "%c3%bc"),
    "/Patient?_id=zq~1,zq~2&_sort=-_id",
    "/Observation?subject=Patient/zq~1&_count=5&_sort=date",
    "/Observation?subject=Patient/zq~1&_summary=count",
    "/Observation?subject=Patient/zq~1&date=ge2024-05-01T10:05:00Z&_sort=-date",
    "/Observation?_id=zq~r1&_include=Observation:subject",
    "/Patient?_id=zq~1&_revinclude=Observation:subject&_summary=count",
    "/Observation?subject:Patient.identifier=urn:untouched|zq~1&_total=accurate",
    "/Observation?patient.identifier=urn:untouched|zq~1&_elements=code",
    "/Patient?nonsense=zq~",
    "/Patient?_id=zq~none",
    "/Observation?subject=Patient/zq~1&value-quantity=gt105||mg/dL&_sort=date",
    "/Patient?_id=zq~1&_has:Observation:subject:code=99504-3",
    "/Patient?name=a%26b%3Dc%23d%25e%2Bf+g&_id=zq~1",
    "/Patient?_id=zq~1&_format=xml&_pretty=true",
    "/?_type=Patient&_id=zq~1",
]
ODD = [
    "/Nonsense/1",
    "/Patient/zq~1/nonsense",
    "/Patient/$nonsense",
    "/$nonsense",
    "/Patient//zq~1",
    "/Patient/un%7E1",
    "/patient/zq~1",
    "/Patient/zq~1/",
    "//Patient/zq~1",
    "/%50atient/zq~1",
    "/Patient/..%2fPatient/zq~1",
    "/Patient/%00",
    "/Patient/zq~1;a=b",
    "/Patient/zq~1?&&=",
    "/Patient/zq~1?_format=nonsense",
    "/.well-known/smart-configuration",
    "/Patient?_getpages=none",
    "?_getpages=none",
    "/Patient/zq~1/$everything?_count=3",
    "/Patient/zq~1/$meta",
    "/$meta",
    "/ValueSet/$expand?url=none",
    "/CodeSystem/$lookup?system=http://loinc.org&code=none",
    "/Patient/zq~1/Observation?_count=2",
    "/StructureDefinition/Patient",
    "/Patient/%C3%BC",
    "/Patient/a b".replace(" ", "%20"),
    "/Binary/none",
    "/Patient/" + "x" * 80,
]
CONDITIONS = [
    ("If-None-Match", 'W/"2"'),
    ("If-None-Match", 'W/"1"'),
    ("If-None-Match", "*"),
    ("If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT"),
    ("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"),
    ("Range", "bytes=0-9"),
    ("Prefer", "return=minimal"),
    ("Cache-Control", "no-cache"),
    ("Cache-Control", "no-store"),
    ("X-Request-ID", "mine-1"),
    ("Authorization", "Bearer x"),
    ("Origin", "http://app.example"),
    ("Prefer", "handling=strict"),
    ("Accept-Charset", "utf-8"),
    ("Accept-Language", "de"),
    ("Cookie", "a=b"),
    ("X-HTTP-Method-Override", "DELETE"),
    ("Expect", "nonsense"),
]
PATCH_JSON = b'[{"op": "replace", "path": "/active", "value": false}]'
PATCH_XML = b'<diff xmlns:f="http://hl7.org/fhir"><replace sel="f:Patient/f:active/@value">true</replace></diff>'
RETURNS = [
    (),
    (("Prefer", "return=minimal"),),
    (("Prefer", "return=representation"),),
    (("Prefer", "return=OperationOutcome"),),
]
NONE = b'{"resourceType": "Patient", "identifier": [{"system": "urn:untouched", "value": "zq~made"}]}'
BAD = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"resourceType": "Nonsense"}',
    b'{"resourceType": "Patient", "active": "maybe"}',
    b"<Patient",
    b"\xff\xfe",
    b'{"resourceType": "Patient", "id": "zq~other", "nonsense": 1}',
    b'{"resourceType": "Observation"}',
    b"{" * 300,
]


def reads() -> Iterator[Request]:
    yield from (
        Request("GET", target, (*accept, *coding)) for target, accept, coding in product(READS, ACCEPTS, CODINGS)
    )
    yield from (Request("GET", "/Patient/zq~1", (condition,)) for condition in CONDITIONS)
    yield from (Request("HEAD", target) for target in [*READS, *SEARCHES])
    yield from (Request("OPTIONS", target) for target in ["/Patient", "/Patient/zq~1"])
    yield from (Request("GET", target, accept) for target, accept in product(SEARCHES, ACCEPTS[:3]))
    yield from (Request("GET", target) for target in ODD)


def searches() -> Iterator[Request]:
    for target in SEARCHES[:-1]:
        path, _, query = target.partition("?")
        yield Request("POST", f"{path}/_search", (FORM,), query.encode())
    yield Request("POST", "/Patient/_search?_id=zq~1", (FORM,), b"_format=xml")
    yield Request("POST", "/Patient/_search", (FORM,), b"_id=zq~1", chunked=True)
    yield Request(
        "POST", "/Patient/_search?_id=zq~1", (FORM, ("Content-Encoding", "gzip")), gzip.compress(b"_id=zq~1", mtime=0)
    )
    yield Request("POST", "/Patient/_search?_id=zq~1", (JSON,), b"{}")


def writes() -> Iterator[Request]:
    big = body(
        patient(
            4, text={"status": "generated", "div": f"<div xmlns='http://www.w3.org/1999/xhtml'>{'x' * 3_000_000}</div>"}
        )
    )
    for prefer in RETURNS:
        yield Request("PUT", "/Patient/zq~5", (JSON, *prefer), body(patient(5, birthDate=f"19{len(prefer)}0-01-01")))
        yield Request("POST", "/Patient", (JSON, *prefer), NONE)
        yield Request("DELETE", "/Patient/zq~5", prefer)
        yield Request("PATCH", "/Patient/zq~2", (("Content-Type", "application/json-patch+json"), *prefer), PATCH_JSON)
        yield Request("PATCH", "/Patient/zq~2", (("Content-Type", "application/xml-patch+xml"), *prefer), PATCH_XML)
    yield Request("GET", "/Patient/zq~5")
    yield from (Request("POST", "/Patient", (JSON,), bad) for bad in BAD)
    yield from (Request("PUT", "/Patient/zq~6", (kind,), bad) for kind, bad in product((JSON, XML), BAD))
    yield Request("PUT", "/Patient/zq~7", (XML,), b'<Patient xmlns="http://hl7.org/fhir"><id value="zq~7"/></Patient>')
    yield Request("PUT", "/Patient/zq~8", (("Content-Type", "text/plain"),), body(patient(8)))
    yield Request("PUT", "/Patient/zq~8", (), body(patient(8)))
    yield Request(
        "PUT", "/Patient/zq~8", (JSON, ("Content-Encoding", "gzip")), gzip.compress(body(patient(8)), mtime=0)
    )
    yield Request("PUT", "/Patient/zq~8", (JSON, ("Content-Encoding", "gzip")), b"no gzip")
    yield Request("PUT", "/Patient/zq~8", (JSON,), body(patient(8)), chunked=True)
    yield Request("PUT", "/Patient/zq~8", (JSON, ("If-Match", 'W/"99"')), body(patient(8)))
    yield Request("PUT", "/Patient/zq~4", (JSON,), big)
    yield Request("PUT", "/Patient/zq~4", (JSON,), big.replace(b"xxx", b"yyy"), chunked=True)
    yield Request("GET", "/Patient/zq~4")
    yield Request("GET", "/Patient/zq~4", CODINGS[1])
    yield Request("POST", "/Patient/zq~1", (JSON,), body(patient(1)))
    yield Request("PUT", "/Patient", (JSON,), body(patient(1)))


def conditional() -> Iterator[Request]:
    for times in range(2):
        yield Request(
            "POST",
            "/Patient",
            (JSON, ("If-None-Exist", "identifier=urn:untouched|zq~once")),
            NONE.replace(b"made", b"once"),
        )
        yield Request("PUT", "/Patient?identifier=urn:untouched|zq~twice", (JSON,), NONE.replace(b"made", b"twice"))
        yield Request("DELETE", f"/Patient?identifier=urn:untouched|zq~{'once' if times else 'none'}")
    yield Request(
        "PATCH",
        "/Patient?identifier=urn:untouched|zq~2",
        (("Content-Type", "application/json-patch+json"),),
        PATCH_JSON,
    )


def bundles() -> Iterator[Request]:
    get = {"request": {"method": "GET", "url": "Patient/zq~1"}}
    put = {"resource": patient(9), "request": {"method": "PUT", "url": "Patient/zq~9"}}
    made = {
        "fullUrl": "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a",
        "resource": json.loads(NONE),
        "request": {"method": "POST", "url": "Patient"},
    }
    bad = {"request": {"method": "GET", "url": "Nonsense/1"}}
    for kind, entries in product(
        ("batch", "transaction"), ([get], [put], [made], [get, put, made], [bad], [get, bad], [])
    ):
        yield Request("POST", "", (JSON,), bundle(kind, *entries))
    yield Request("POST", "/", (JSON,), bundle("batch", get))
    yield Request("POST", "", (JSON, ("Accept", "application/fhir+xml")), bundle("batch", get))
    yield Request("POST", "", (JSON, ("Content-Encoding", "gzip")), gzip.compress(bundle("batch", get, put), mtime=0))
    yield Request("POST", "", (JSON,), bundle("batch", get, put), chunked=True)
    yield Request("POST", "", (JSON,), bundle("collection", put))
    yield Request("POST", "", (JSON,), body(patient(1)))
    yield Request("POST", "/Bundle", (JSON,), bundle("collection"))


def operations() -> Iterator[Request]:
    parameters = body({"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": patient(1)}]})
    yield Request("POST", "/Patient/$validate", (JSON,), parameters)
    yield Request("POST", "/Patient/$validate", (JSON,), body(patient(1)))
    yield Request("POST", "/Patient/zq~1/$everything", (JSON,), b"")
    yield Request("POST", "/Patient/zq~1/$meta-add", (JSON,), body({"resourceType": "Parameters"}))
    yield Request("POST", "/$nonsense", (JSON,), parameters)
    yield Request("POST", "/$process-message", (JSON,), bundle("message"))
    yield Request("PUT", "/Binary/zq~b", (("Content-Type", "application/pdf"),), b"%PDF\x00\xff" * 50_000)
    yield from (Request("GET", "/Binary/zq~b", accept) for accept in [*ACCEPTS, (("Accept", "application/pdf"),)])
    yield from (Request(method, "/Patient/zq~1") for method in ("TRACE", "PROPFIND", "LINK"))


def requests() -> list[Request]:
    """Return all requests, in the order in which they are sent."""
    return [*reads(), *searches(), *writes(), *conditional(), *bundles(), *operations()]
