"""What the specification says in prose about single data types is checked."""

from base64 import b64encode
from hashlib import sha1
from typing import Any

import pytest

from cgm_proxy.core.r4.datatypes import TYPE_CHECKS

HASH = b64encode(sha1(b"\0", usedforsecurity=False).digest()).decode()
UUID = "c757873d-ec9a-4326-a141-556f43239520"


def entry(url: str | None = f"urn:uuid:{UUID}", **resource: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"resource": {"resourceType": "Observation", **resource}}
    return made if url is None else made | {"fullUrl": url}


def collection(*entries: Any, **more: Any) -> dict[str, Any]:
    return {"type": "collection", "entry": list(entries), **more}


VALID = [
    ("Attachment", {}),
    ("Attachment", {"data": "AA==", "size": 1, "hash": HASH}),
    ("Attachment", {"size": 5, "hash": HASH}),
    ("Extension", {"valueString": "x"}),
    ("Extension", {"_valueString": {"id": "a"}}),
    ("Extension", {"extension": []}),
    ("Identifier", {"value": "1"}),
    ("Identifier", {"system": "urn:ietf:rfc:3986", "value": "urn:oid:1.2"}),
    ("Identifier", {"system": "https://tools.ietf.org/html/rfc4122", "value": UUID}),
    ("Identifier", {"system": "ldap://x", "value": "1"}),
    ("Meta", {"security": [{"system": "a", "code": "x"}, {"system": "b", "code": "x"}]}),
    ("Bundle", collection(entry())),
    ("Bundle", collection(entry("http://x.example/fhir/Observation/1", id="1"))),
    ("Bundle", collection(entry(subject={"reference": "Patient/1"}))),
    ("Bundle", {"type": "transaction", "entry": [entry(None)]}),
    ("Bundle", {"type": "transaction", "entry": [entry(None, subject={"reference": "#p"})]}),
    ("Bundle", {"type": "transaction", "entry": [entry(subject={"reference": "Patient?identifier=a"})]}),
    ("Bundle", {"type": "searchset", "link": [{"relation": "self"}, {"relation": "next"}]}),
    ("Bundle", collection(link=[{"relation": "a"}, {"relation": "a"}])),
]


@pytest.mark.parametrize(("type_", "data"), VALID)
def test_valid_data_has_no_fault(type_: str, data: dict[str, Any]) -> None:
    assert list(TYPE_CHECKS[type_](data)) == []


INVALID = [
    ("Attachment", {"data": "AA== "}, "r4-value", "data", 'is "AA== "; R4 requires base64 with padding'),
    ("Attachment", {"hash": "!!!!"}, "r4-value", "hash", 'is "!!!!"; R4 requires base64 with padding'),
    ("Attachment", {"data": "AA==", "size": 2}, "r4-attachment-size", "size", "is 2; the data has 1 bytes"),
    ("Attachment", {"data": "AA==", "hash": "AA=="}, "r4-attachment-hash", "hash", "is not the SHA-1 of the data"),
    ("Extension", {}, "ext-1", "", "must have either a value[x] or extensions"),
    ("Extension", {"valueString": "x", "extension": []}, "ext-1", "", "must have either a value[x] or extensions"),
    ("Identifier", {"system": "x"}, "r4-value", "system", 'is "x"; R4 requires an absolute URI'),
    ("Identifier", {"system": "urn:ietf:rfc:3986", "value": "1"}, "r4-value", "value", 'is "1"; with the system urn:'),
    (
        "Identifier",
        {"system": "https://tools.ietf.org/html/rfc4122", "value": "1"},
        "r4-value",
        "value",
        'is "1"; with the system https:',
    ),
    (
        "Meta",
        {"security": [{"system": "a", "code": "x"}, {"system": "a", "code": "x"}]},
        "r4-duplicate-label",
        "security[1]",
        "is a#x a second time; leave one of them out",
    ),
    ("Bundle", collection(entry(None)), "r4-full-url", "entry[0]", "has no fullUrl"),
    ("Bundle", collection(entry("Observation/1")), "r4-full-url", "entry[0].fullUrl", "R4 requires an absolute URL"),
    ("Bundle", collection(entry("urn:uuid:X")), "r4-full-url", "entry[0].fullUrl", "a lower-case UUID after urn:uuid:"),
    (
        "Bundle",
        collection(entry("http://x.example/Patient/1", id="1")),
        "r4-full-url",
        "entry[0].fullUrl",
        "it must end with /Observation/1",
    ),
    ("Bundle", collection(entry(), entry()), "bdl-7", "entry[1].fullUrl", "the same as that of entry[0]"),
    (
        "Bundle",
        collection(entry(subject={"reference": "p"})),
        "r4-reference",
        "entry[0].resource",
        'refers to "p"; in a Bundle R4 requires Type/id or a URL',
    ),
    (
        "Bundle",
        collection(entry(subject={"reference": "Patient?identifier=a"})),
        "r4-reference",
        "entry[0].resource",
        "in a Bundle R4 requires Type/id or a URL",
    ),
    ("Bundle", collection(link=[{"relation": "next"}]), "r4-link", "link[0].relation", "only a searchset or history"),
    (
        "Bundle",
        collection(link=[{"relation": "self"}, {"relation": "self"}]),
        "r4-link",
        "link[1].relation",
        'is "self" a second time',
    ),
]


@pytest.mark.parametrize(("type_", "data", "rule", "path", "text"), INVALID)
def test_invalid_data_has_one_fault(type_: str, data: dict[str, Any], rule: str, path: str, text: str) -> None:
    ((found_rule, found_path, found_text),) = TYPE_CHECKS[type_](data)
    assert (found_rule, found_path) == (rule, path)
    assert text in found_text
