"""Models of fhir.resources become the JSON that they were built from, and have the elements of R4."""

import base64
from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec
import pytest
from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.attachment import Attachment
from fhir.resources.R4B.coding import Coding
from fhir.resources.R4B.device import Device
from fhir.resources.R4B.observation import Observation
from fhir.resources.R4B.period import Period
from fhir.resources.R4B.quantity import Quantity
from support.places import RULES

from cgm_proxy.core.codec.fhir_models import as_json

OBSERVATION = {
    "resourceType": "Observation",
    "id": "o",
    "meta": {"profile": ["http://example.org/p"]},
    "extension": [{"url": "http://example.org/e", "valueBoolean": False}],
    "status": "final",
    "_status": {"extension": [{"url": "http://example.org/e", "valueString": "x"}]},
    "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]},
    "effectiveDateTime": "2024-05-01T10:00:00+02:00",
    "valueQuantity": {"value": Decimal("5.60"), "unit": "mmol/l"},
    "component": [{"code": {"text": "c"}, "valueInteger": 0}, {"code": {"text": "d"}, "valueTime": "10:00:00"}],
}


def test_a_resource_becomes_the_json_that_it_was_built_from_in_the_order_of_the_specification():
    built = as_json(Observation(**dict(reversed(OBSERVATION.items()))))
    assert built == OBSERVATION
    assert list(built) == list(OBSERVATION)


@pytest.mark.parametrize("digits", ["100.0", "5.60", "0.10", "126", "1E+2", "98.123456789012345678"])
def test_numbers_keep_their_digits(digits):
    value = as_json(Quantity(value=Decimal(digits)))["value"]
    assert str(value) == digits


def test_a_whole_number_is_an_int():
    assert repr(as_json(Quantity(value=126))) == "{'value': 126}"


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (datetime(2024, 5, 1, 10, tzinfo=UTC), "2024-05-01T10:00:00Z"),
        ("2024-05-01T10:00:00.120+02:00", "2024-05-01T10:00:00.120000+02:00"),
        (date(2024, 5, 1), "2024-05-01"),
        ("2024-05", "2024-05"),
        ("2024", "2024"),
    ],
)
def test_dates_keep_their_precision_and_zone(start, text):
    assert as_json(Period(start=start)) == {"start": text}


def test_binary_data_is_base64():
    data = base64.b64encode(b"%PDF\xff")
    assert as_json(Attachment(data=data)) == {"data": data.decode()}


def test_only_resources_have_a_resource_type():
    assert as_json(Device()) == {"resourceType": "Device"}
    assert as_json(Coding(code="c")) == {"code": "c"}


#: Types that the program creates, with the name of an element's own type in the definitions of R4.
CREATED = {
    **{
        name: name
        for name in (
            "Attachment", "Bundle", "CodeableConcept", "Coding", "Device", "DiagnosticReport", "Extension", "HumanName",
            "Identifier", "Meta", "Observation", "Patient", "Period", "Quantity", "Reference", "ServiceRequest", "Timing",
        )
    },
    "BundleEntry": "Bundle.entry",
    "BundleEntryRequest": "Bundle.entry.request",
    "DeviceDeviceName": "Device.deviceName",
    "ObservationComponent": "Observation.component",
    "TimingRepeat": "Timing.repeat",
}  # fmt: skip

#: Elements that only one of R4 and R4B has, in types that the program creates.
DIFFERENT = {"Extension": {"valueRatioRange", "valueCodeableReference", "valueMeta"}}


@pytest.mark.parametrize(("model", "r4_type"), CREATED.items(), ids=CREATED)
def test_the_models_have_the_elements_of_r4(model, r4_type):
    lines = (RULES / "r4" / "types.ndjson").read_bytes().splitlines()
    types = {line["type"]: line for line in map(msgspec.json.decode, lines)}
    elements = set(get_fhir_model_class(model).elements_sequence())
    assert elements ^ r4_elements(types, r4_type) == DIFFERENT.get(model, set())


def r4_elements(types, name):
    """Return the names of a type's elements, one for each type of a choice."""
    found = set()
    for element, line in types[name]["elements"].items():
        choices = line.split()[1].split("|") if element.endswith("[x]") else ()
        stem = element.removesuffix("[x]")
        found |= {stem + choice.split("(")[0][0].upper() + choice.split("(")[0][1:] for choice in choices} or {element}
    base = types[name]["of"]
    return found | (r4_elements(types, base) if base else set())
