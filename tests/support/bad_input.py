"""Tables of bad submissions and bad entries, with the status and the rule of the response to each."""

import json
from collections.abc import Callable
from typing import Any


def nested(levels: int) -> str:
    return '{"extension":[' * levels + "{}" + "]}" * levels


#: What is wrong, how the body is made from the text of a good one, and the status and rule of the response.
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
    ("two meta elements", lambda t: t.replace('"meta":', '"meta":{},"meta":', 1), 400, "json-duplicate-key"),
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


#: What is wrong with the second entry, how it is made, and the status and first rule of its response.
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
        "a patient whose id begins with the other's",
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
        "a forged identity",
        resource(
            identifier=[{"system": "urn:ietf:rfc:3986", "value": "urn:uuid:0b0fb34f-4fd6-8e10-9d6e-0cf1a7ad2cb1"}]
        ),
        "422",
        "identity-forged",
    ),
    (
        "a reference to a resource that is not stored",
        resource(device={"reference": "Device/none-such"}),
        "422",
        "reference-unknown",
    ),
]


#: Elements of a reading, each with values of a wrong type; base R4 refuses them and names the element.
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
