"""Responses to submissions: their format and their content are what the submitter asks for."""

import json
from decimal import Decimal

import pytest
from support.client import JSON, XML
from support.fake_upstream import before, reset, searches
from support.proxying import proxying, statuses
from support.r4 import FHIR_XML

from cgm_proxy.core.codec.json_body import encode

FORMATS = [
    ("application/fhir+json", "", JSON, "json"),
    ("application/fhir+xml", "", JSON, "xml"),
    ("*/*", "", JSON, "json"),
    ("*/*", "", XML, "xml"),
    (None, "", JSON, "json"),
    (None, "", XML, "xml"),
    ("application/fhir+json", "", XML, "json"),
    ("application/fhir+xml;q=0.5, application/fhir+json;q=0.9", "", JSON, "json"),
    ("application/fhir+xml;q=0.9, application/fhir+json;q=0.5", "", JSON, "xml"),
    ("application/fhir+json;q=0.1,application/fhir+xml", "", JSON, "xml"),
    ("application/fhir+xml ; Q=0.2, application/json", "", XML, "json"),
    ("application/fhir+xml;q=0.1, */*", "", JSON, "json"),
    ("application/fhir+xml, */*", "", JSON, "xml"),
    ("*/*, application/fhir+xml;q=0.8", "", JSON, "json"),
    ("application/fhir+xml;q=0", "", JSON, "json"),
    ("application/fhir+xml;q=nan, application/fhir+json;q=0.001", "", JSON, "json"),
    ("application/fhir+xml;q=inf, application/fhir+json;q=1", "", JSON, "json"),
    ("text/html", "", JSON, "json"),
    ("text/html, application/xml;q=0.9", "", JSON, "xml"),
    ("application/fhir+xml;fhirVersion=4.0", "", JSON, "xml"),
    ("application/fhir+json", "?_format=xml", JSON, "xml"),
    ("application/fhir+xml", "?_format=json", JSON, "json"),
    ("application/fhir+json", "?_format=application/fhir+xml", JSON, "xml"),
    ("application/fhir+json", "?_format=application%2Ffhir%2Bxml", JSON, "xml"),
    ("application/fhir+xml", "?_format=application/json;charset=utf-8", JSON, "json"),
    ("application/fhir+xml", "?_format=nonsense", JSON, "xml"),
    ("application/fhir+xml", "?_format=", JSON, "xml"),
]


async def test_the_response_is_in_the_format_that_is_asked_for() -> None:
    async with proxying() as world:
        for accept, query, content_type, expected in FORMATS:
            bundle = world.readings(2)
            data = FHIR_XML.to_xml(bundle) if content_type == XML else encode(bundle)
            headers = {"Content-Type": content_type} | ({"Accept": accept} if accept else {})
            for path, status in ((query, 200), (f"$submit-cgm-bundle{query}", 400)):
                answer = await world._request(world.url, "POST", path, data if status == 200 else b"{}", headers)
                assert answer.status == status
                kind = answer.headers["Content-Type"]
                assert kind == f"application/fhir+{expected};charset=utf-8", (accept, query, content_type, status)
                assert answer.body["resourceType"] == ("Bundle" if status == 200 else "OperationOutcome")


async def test_characters_that_xml_cannot_hold_do_not_break_a_response_in_xml() -> None:
    async with proxying() as world:
        bundle = world.readings(2)
        bundle["entry"][0]["resource"]["valueQuantity"]["unit"] = "a\x00b\x0c\ufffe<"
        answer = await world.submit(bundle, Accept=XML)
        assert statuses(answer) == [422, 201]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dialect", ["argo", "1.0.0"])
@pytest.mark.parametrize("prefer", ["", "minimal", "representation", "OperationOutcome", "nonsense"])
async def test_prefer_decides_what_the_response_to_an_entry_contains(prefer: str, dialect: str, again: bool) -> None:
    async with proxying() as world:
        bundle = world.readings(3, device=True, dialect=dialect)
        bundle["entry"].append(bundle["entry"][1] | {"fullUrl": "urn:uuid:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1"})
        headers = {"Prefer": f"respond-async, return={prefer}"} if prefer else {}
        if again:
            await world.submit(bundle, dialect)
        answer = await world.submit(bundle, dialect, **headers)
        assert statuses(answer) == ([200] * 5 if again else [201, 201, 201, 201, 200])
        for sent, entry in zip(bundle["entry"], answer.body["entry"], strict=True):
            shown = entry.get("resource")
            assert (shown is not None) == (prefer == "representation")
            assert ("outcome" in entry["response"]) == (prefer == "OperationOutcome")
            if shown:
                assert entry["response"]["location"].startswith(f"{shown['resourceType']}/{shown['id']}/_history/")
                assert shown.get("valueQuantity") == json.loads(
                    encode(sent["resource"].get("valueQuantity")), parse_float=Decimal
                )


@pytest.mark.parametrize("act", [before(403), before(500), reset(committed=False)])
async def test_a_stored_entry_is_answered_even_if_its_representation_cannot_be_read(act) -> None:
    async with proxying() as world:
        bundle = world.readings(3)
        await world.submit(bundle)
        world.fake.always(searches("Observation", "_id="), act)
        assert statuses(await world.submit(bundle, Prefer="return=representation")) == [200] * 3
