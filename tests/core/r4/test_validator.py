"""Base R4 as the HL7 validator reads it: one change of a valid resource each, and whether it is still valid."""

from collections.abc import Callable
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest
from support.places import RULES

from cgm_proxy.rulekit.loading import rule_book

BOOK = rule_book(RULES)
BOOK.verdict_cache = None
NULL, OBSERVED = (
    "http://terminology.hl7.org/CodeSystem/v3-NullFlavor",
    "http://terminology.hl7.org/CodeSystem/observation-category",
)
LOINC, SNOMED, UCUM, CURRENCY = (
    "http://loinc.org",
    "http://snomed.info/sct",
    "http://unitsofmeasure.org",
    "urn:iso:std:iso:4217",
)
CORE = "http://hl7.org/fhir/StructureDefinition/"
TEXT = {"url": "http://x.org/e", "valueString": "x"}
RESOURCE: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "a",
    "status": "final",
    "code": {"coding": [{"system": LOINC, "code": "1-8"}]},
    "subject": {"reference": "Patient/1"},
    "effectivePeriod": {"start": "2024-05-01", "end": "2024-05-02"},
    "valueQuantity": {"value": Decimal("1.0"), "unit": "mg/dL", "system": UCUM, "code": "mg/dL"},
}


def coded(*codings: tuple[str, str]) -> dict:
    return {"coding": [{"system": system, "code": code} for system, code in codings]}


def tagged(system: str, code: str) -> dict:
    return {"meta": {"tag": [{"system": system, "code": code}]}}


def low(system: str, code: str) -> dict:
    return {"referenceRange": [{"low": {"value": 1, "system": system, "code": code}}]}


def extended(url: str, **more: object) -> dict:
    return {"extension": [{"url": url, **(more or {"valueString": "x"})}]}


def holding(*contained: dict, reference: str = "#p") -> dict:
    return {"contained": list(contained), "subject": {"reference": reference}}


PATIENT = {"resourceType": "Patient", "id": "p"}
LINKING = {
    "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml"><a href="#p">x</a></div>'},
}
VALID = {
    "a relative system in a concept": {"method": coded(("LOINC", "x"))},
    "an unknown code beside a valid one": {"method": coded((NULL, "x"), (NULL, "UNK"))},
    "an unknown code beside one of an unknown system": {"method": coded((NULL, "x"), (LOINC, "1"))},
    "an unknown code beside one from the value set": {"category": [coded((OBSERVED, "x"), (OBSERVED, "laboratory"))]},
    "a currency in lower case": {"method": coded((CURRENCY, "usd"))},
    "a unit": low(UCUM, "10*3/uL"),
    "a quantity of an unknown system": low("http://x.org", "x"),
    "a quantity's relative system without code": {"referenceRange": [{"low": {"value": 1, "system": "x"}}]},
    "a tag of a system without a list of codes": tagged("urn:ietf:bcp:13", "x"),
    "a label with a relative system": {"meta": {"security": [{"system": "x", "code": "x"}]}},
    "a country": tagged("urn:iso:std:iso:3166", "USA"),
    "a language with its country": {"language": "de-AT"},
    "a language that is absent": {"_language": {"extension": [TEXT]}},
    "a blank text": {"valueQuantity": RESOURCE["valueQuantity"] | {"unit": " "}},
    "a blank language": {"language": " "},
    "a blank type of a reference": {"subject": {"reference": "Patient/1", "type": "\u2028"}},
    "an empty text with an extension": {"subject": {"reference": "", "_reference": {"extension": [TEXT]}}},
    "a reference with a no-break space": {"subject": {"reference": "a\u00a0b"}},
    "an unknown type in a reference": {"subject": {"reference": "Foo/1"}},
    "a conditional reference": {"subject": {"reference": "Patient?identifier=a|b"}},
    "an extension's url of another scheme": extended("a:b"),
    "a part with a plain name": extended("http://x.org/e", extension=[{"url": "rel", "valueString": "x"}]),
    "an extension that is allowed anywhere": extended(f"{CORE}capabilitystatement-expectation", valueCode="SHALL"),
    "a canonical of another scheme": {"meta": {"profile": ["a:b"]}},
    "an unknown profile": {"meta": {"profile": [f"{CORE}Nope"]}},
    "the base profile": {"meta": {"profile": [f"{CORE}Observation"]}},
    "an identifier of a directory": {"identifier": [{"system": "ldap://x", "value": "1"}]},
    "an identifier that is a URI": {"identifier": [{"system": "urn:ietf:rfc:3986", "value": "urn:oid:1.2"}]},
    "a range without limits in a component": {"component": [{"code": {"text": "x"}, "referenceRange": [{"type": {"text": "x"}}]}]},
    "a leap second": {"effectivePeriod": {"start": "2024-05-01", "end": "2024-05-01T23:59:60Z"}},
    "base64 that nobody decodes": extended("http://x.org/e", valueBase64Binary="AA==\n"),
    "data of its size": extended("http://x.org/e", valueAttachment={"contentType": "a/b", "data": "AA==", "size": 1}),
    "a contained resource": holding(PATIENT),
    "a contained resource that the narrative refers to": holding(PATIENT, reference="Patient/1") | LINKING,
    "a blank with a byte order mark": {"valueQuantity": RESOURCE["valueQuantity"] | {"unit": "\ufeff "}},
    "a period whose start is an extension": {
        "effectivePeriod": {"start": "", "_start": {"extension": [TEXT]}, "end": "2024-05-02"},
    },
    "a version of an unknown extension": extended("http://x.org/e|1"),
    "a range in plain numbers": extended("http://x.org/e", valueRange={"low": {"value": 1}, "high": {"value": Decimal("2.5")}}),
    "a range of one value": extended("http://x.org/e", valueRange={"low": {"value": 1}, "high": {"value": Decimal("1.0")}}),
    "a zero with digits": {"valueQuantity": {"value": Decimal("0.00")}},
    "a dose as a quantity": extended("http://x.org/e", valueDosage={"doseAndRate": [{"doseQuantity": {"value": 1}}]}),
    "a unit's system that is absent": {
        "valueQuantity": {"value": 1, "code": "mg", "_system": {"extension": [TEXT]}},
    },
}  # fmt: skip
INVALID = {
    "an unknown code": {"method": coded((NULL, "x"))},
    "an unknown code beside a valid one from outside the value set": {"interpretation": [coded((NULL, "x"), (NULL, "UNK"))]},
    "an unknown code beside one of SNOMED CT": {"method": coded((NULL, "x"), (SNOMED, "1"))},
    "an unknown code beside one without system": {"method": {"coding": [{"system": NULL, "code": "x"}, {"code": "x"}]}},
    "an unknown unit": {"method": coded((UCUM, "foo"))},
    "an unknown unit of a quantity": low(UCUM, "mmHg"),
    "an unknown code of a quantity": low(NULL, "x"),
    "a quantity's relative system": low("x", "x"),
    "a tag's relative system": tagged("mailto:a@b", "x"),
    "a tag's value set": tagged("http://hl7.org/fhir/ValueSet/observation-status", "final"),
    "an unknown currency": tagged(CURRENCY, "nonsense"),
    "a country in lower case": tagged("urn:iso:std:iso:3166", "us"),
    "a label twice": {"meta": {"security": [{"system": NULL, "code": "UNK"}, {"system": NULL, "code": "UNK", "display": "x"}]}},
    "a language in upper case": {"language": "EN"},
    "a status that is absent": {"status": ..., "_status": {"extension": [TEXT]}},
    "a blank status": {"status": " "},
    "an empty text with an id": {"subject": {"reference": "", "_reference": {"id": "a"}}},
    "a reference with a space": {"subject": {"reference": "a b"}},
    "a reference to a type that is not allowed": {"subject": {"reference": "Practitioner/a_b"}},
    "a reference to a data type": {"subject": {"reference": "Quantity/1"}},
    "a reference with a path before its type": {"subject": {"reference": "x/Practitioner/1"}},
    "a conditional reference without condition": {"subject": {"reference": "Patient?"}},
    "an unknown Reference.type": {"subject": {"display": "x", "type": "http://x.org/y"}},
    "another type in Reference.type": {"subject": {"reference": "Patient/1", "type": "Group"}},
    "a reference to itself": {"subject": {"reference": "#"}},
    "an extension's relative url": extended("rel"),
    "an extension's url in upper case": extended("HTTP://x.org"),
    "an extension's blank url": extended(" "),
    "an extension whose url has no value": {"extension": [{"_url": {"extension": [TEXT]}, "valueString": "x"}]},
    "a part's name with a space": extended("http://x.org/e", extension=[{"url": "r l", "valueString": "x"}]),
    "a short OID": extended("urn:oid:1.2"),
    "a canonical that refers to nothing": {"meta": {"profile": ["#x"]}},
    "a code system for a profile": {"meta": {"profile": ["http://hl7.org/fhir/observation-status"]}},
    "another type's profile": {"meta": {"profile": [f"{CORE}Patient"]}},
    "an abstract type's profile": {"meta": {"profile": [f"{CORE}DomainResource"]}},
    "an identifier's relative system": {"identifier": [{"system": "x", "value": "1"}]},
    "an identifier that should be a URI": {"identifier": [{"system": "urn:ietf:rfc:3986", "value": "1"}]},
    "an identifier that should be a UUID": {"identifier": [{"system": "https://tools.ietf.org/html/rfc4122", "value": "1"}]},
    "a range without limits": {"referenceRange": [{"type": {"text": "x"}}]},
    "a zero with an exponent": {"valueQuantity": {"value": Decimal("0e0")}},
    "an extension's URL with a version": extended(f"{CORE}data-absent-reason|4.0.1", valueCode="unknown"),
    "an extension for another version of FHIR": extended("http://hl7.org/fhir/5.0/StructureDefinition/extension-Observation.note"),
    "the URL of a profile for an extension's": extended("http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"),
    "narrative without namespace in a part": {
        "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml"><p xmlns="">x</p></div>'},
    },
    "a zero with a larger exponent": {"valueQuantity": {"value": Decimal("0E5")}},
    "a text of a byte order mark": {"valueQuantity": RESOURCE["valueQuantity"] | {"unit": "\ufeff"}},
    "a form feed in a text": {"method": {"text": "a\fb"}},
    "a form feed alone": {"method": {"text": "\f"}},
    "a zero byte in a text": {"method": {"text": "a\0b"}},
    "a backspace in a text": {"method": {"text": "\b"}},
    "a companion of the type": {"_resourceType": {"id": "a"}},
    "a range from high to low": extended("http://x.org/e", valueRange={"low": {"value": 2}, "high": {"value": 1}}),
    "a dose by its profile's name": extended("http://x.org/e", valueDosage={"doseAndRate": [{"doseSimpleQuantity": {"value": 1}}]}),
    "the URL of a type for an extension's": extended(f"{CORE}Observation"),
    "base64 that lacks a character": extended("http://x.org/e", valueBase64Binary="AA="),
    "data with a space": extended("http://x.org/e", valueAttachment={"contentType": "a/b", "data": "AA== "}),
    "data of another size": extended("http://x.org/e", valueAttachment={"contentType": "a/b", "data": "AA==", "size": 2}),
    "a hash that is not base64": extended("http://x.org/e", valueAttachment={"contentType": "a/b", "hash": "!!"}),
    "a contained resource without id": holding({"resourceType": "Patient", "link": [{"other": {"reference": "#"}}]}),
    "a contained resource twice": holding(PATIENT, PATIENT),
    "a contained resource without references to it": holding(PATIENT, reference="Patient/1"),
}  # fmt: skip


def changed(change: dict) -> dict:
    made = {**deepcopy(RESOURCE), **change}
    return {name: value for name, value in made.items() if value is not ...}


def refusals(resource: dict) -> list[str]:
    return [issue.text for issue in BOOK.examine(resource, (), dialect="1.0.0") if issue.refuses]


@pytest.mark.parametrize("change", VALID.values(), ids=VALID)
def test_a_resource_that_the_validator_accepts_is_accepted(change: dict) -> None:
    assert refusals(changed(change)) == []


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID)
def test_a_resource_that_the_validator_refuses_is_refused(change: dict) -> None:
    assert refusals(changed(change))


def entry(**more: object) -> dict:
    return {"fullUrl": "http://x.org/Observation/a", "resource": deepcopy(RESOURCE), **more}


BUNDLES: dict[str, tuple[dict, Callable[[list[str]], bool]]] = {
    "a type that is a list": ({"type": ["collection"]}, bool),
    "a reference that is not Type/id": (
        {"entry": [entry(resource=changed({"subject": {"reference": "{{x}}"}}))]},
        bool,
    ),
    "a collection": ({}, lambda messages: not messages),
    "a link twice": ({"link": [{"relation": "self", "url": "x"}, {"relation": "self", "url": "y"}]}, bool),
    "a link to a page": ({"link": [{"relation": "next", "url": "x"}]}, bool),
    "links": (
        {"link": [{"relation": "self", "url": "x"}, {"relation": "a", "url": "y"}]},
        lambda messages: not messages,
    ),
    "an entry that is not an object": ({"entry": [5]}, bool),
}


@pytest.mark.parametrize(("change", "holds"), BUNDLES.values(), ids=BUNDLES)
def test_bundles_are_accepted_or_refused_as_a_whole(change: dict, holds: Callable[[list[str]], bool]) -> None:
    assert holds(refusals({"resourceType": "Bundle", "type": "collection", "entry": [entry()], **change}))
