"""The identity of an entry: equal for the same data in any notation, different for different data."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.submissions import PATIENT, device, entry, gmi, localize, reading, submitted, summary, urn

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.submission.identity import (
    IDENTITY_PATTERN,
    IDENTITY_SYSTEM,
    IdentityScope,
    compute_identity,
    has_foreign_identity,
    search_token,
    stamp,
)
from cgm_proxy.core.submission.model import Entry


def entry_of(resource: dict[str, Any]) -> Entry:
    return submitted(entry(resource)).entries[0]


def identity_of(
    resource: dict[str, Any], patient: str = PATIENT, devices: dict[str, Any] | None = None, **references: str
) -> str:
    scope = IdentityScope(patient, references.get, (devices or {}).get, localize)
    return compute_identity(entry_of(resource), scope)


def test_an_identity_is_a_uuid_of_version_8() -> None:
    for number in range(100):
        assert IDENTITY_PATTERN.fullmatch(identity_of(reading(number)))
    assert search_token(identity_of(reading())).startswith("urn:ietf:rfc:3986|urn:uuid:")


def quantity(**more: Any) -> dict[str, Any]:
    return {"valueQuantity": reading()["valueQuantity"] | more}


SAME = {
    "another zone": {"effectiveDateTime": "2025-06-01T05:45:00+05:45"},
    "a fraction of zeros": {"effectiveDateTime": "2025-06-01T00:00:00.0000000Z"},
    "a digit more": quantity(value=Decimal("100.0")),
    "an exponent": quantity(value=Decimal("1e2")),
    "another unit text, the same code": quantity(unit="mg/dL"),
    "an id and meta": {"id": "x", "meta": {"lastUpdated": "2025-01-01T00:00:00Z"}},
    "narrative": {"text": {"status": "generated"}},
    "an identifier of its own": {"identifier": [{"system": "http://x", "value": "1"}]},
    "a display": {
        "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3", "display": "Glucose"}], "text": "CGM"}
    },
    "another coding before": {
        "code": {"coding": [{"system": "http://x", "code": "y"}, {"system": "http://loinc.org", "code": "99504-3"}]}
    },
    "no device in the element": {"device": {}},
}
OTHER = {
    "another value": quantity(value=101),
    "a value that differs in the last digit": quantity(value=Decimal("100.00000000000000000001")),
    "a negative value": quantity(value=-100),
    "a comparator": quantity(comparator=">"),
    "another unit": quantity(unit="mmol/l", code="mmol/L"),
    "another instant": {"effectiveDateTime": "2025-06-01T00:00:01Z"},
    "a fraction": {"effectiveDateTime": "2025-06-01T00:00:00.5Z"},
    "another code": {"code": {"coding": [{"system": "http://loinc.org", "code": "14745-4"}]}},
    "no value": {"valueQuantity": None, "dataAbsentReason": {"text": "x"}},
    "a value that is no number": quantity(value="100"),
    "a device with a serial": {"device": {"reference": "Device/serial"}},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_the_same_reading_in_another_notation_has_the_same_identity(change: dict[str, Any]) -> None:
    assert identity_of(reading() | change) == identity_of(reading())


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_a_different_reading_has_a_different_identity(change: dict[str, Any]) -> None:
    devices = {"Device/serial": device(serialNumber="1")}
    assert identity_of(reading() | change, devices=devices) != identity_of(reading())


def test_the_order_of_two_codes_of_a_reading_does_not_matter() -> None:
    codes = [{"system": "http://loinc.org", "code": code} for code in ("99504-3", "14745-4")]
    one, other = (identity_of(reading() | {"code": {"coding": listed}}) for listed in (codes, codes[::-1]))
    assert one == other


def test_the_reading_of_another_patient_has_a_different_identity() -> None:
    assert identity_of(reading(), "Patient/1") != identity_of(reading(), "Patient/12")


def test_different_changes_give_different_identities() -> None:
    devices = {"Device/serial": device(serialNumber="1")}
    found = [identity_of(reading() | change, devices=devices) for change in OTHER.values()]
    assert len(set(found)) == len(OTHER)


@given(st.permutations(list(reading().items())))
def test_the_order_of_members_does_not_matter(members: list[tuple[str, Any]]) -> None:
    assert identity_of(dict(members)) == identity_of(reading())
    assert identity_of(dict(members) | {"valueString": "x"}) == identity_of(reading() | {"valueString": "x"})


#: Devices, and whether something in them identifies them.
DEVICES = {
    "serial": ({"serialNumber": "1"}, True),
    "identifier": ({"identifier": [{"system": "http://x", "value": "1"}]}, True),
    "identifier without system": ({"identifier": [{"value": "1"}]}, True),
    "udi": ({"udiCarrier": [{}, {"deviceIdentifier": "1"}]}, False),
    "nothing": ({}, False),
    "an id": ({"id": "1"}, False),
    "an empty serial": ({"serialNumber": "", "identifier": [{"system": "http://x"}]}, False),
    "wrong types": ({"serialNumber": None, "udiCarrier": [5], "identifier": ["x", None, {"value": None}]}, False),
    "wrong types again": ({"udiCarrier": {"deviceIdentifier": "1"}, "identifier": 5}, False),
}


@pytest.mark.parametrize(("fields", "identified"), DEVICES.values(), ids=DEVICES)
def test_a_device_is_part_of_the_identity_by_what_identifies_it_or_else_by_itself(
    fields: dict[str, Any], identified: bool
) -> None:
    names = [urn(1), "Device/7", "Device/7/_history/2", "http://up:8081/fhir/Device/7"]
    devices = dict.fromkeys(names, device(**fields))
    by_urn, *by_id = (identity_of(reading(device={"reference": name}), devices=devices) for name in names)
    assert len(set(by_id)) == 1
    assert (by_urn == by_id[0]) == identified
    assert identity_of(reading()) not in {by_urn, *by_id}


def test_a_device_with_nothing_but_the_identity_that_it_got_is_the_same_before_and_after_it_was_stored() -> None:
    own = identity_of(device())
    stored = {"Device/7": device(id="7", identifier=[{"system": IDENTITY_SYSTEM, "value": own}])}
    sent = reading(device={"reference": urn(1)})
    assert identity_of(sent, devices={urn(1): device()}, **{urn(1): own}) == identity_of(
        reading(device={"reference": "Device/7"}), devices=stored
    )


def test_the_order_of_a_devices_identifiers_does_not_matter() -> None:
    identifiers = [{"system": "http://x", "value": "1"}, {"system": "http://a", "value": "2"}]
    one, other = ({"Device/7": device(identifier=listed)} for listed in (identifiers, identifiers[::-1]))
    resource = reading(device={"reference": "Device/7"})
    assert identity_of(resource, devices=one) == identity_of(resource, devices=other)


def test_readings_that_cannot_be_interpreted_are_identified_by_their_content() -> None:
    wrong: list[dict[str, Any]] = [
        quantity(value="100"),
        quantity(value="105"),
        {"valueQuantity": [1]},
        {"valueQuantity": [2]},
        {"valueQuantity": None},
        {"valueInteger": 1},
        {"effectiveDateTime": 5},
        {"effectiveDateTime": 6},
        {"code": {"coding": "99504-3"}},
        {"code": {"coding": [{"system": ["http://loinc.org"], "code": {}}]}},
    ]
    assert len({identity_of(reading() | change) for change in wrong}) == len(wrong)


def test_a_reading_without_value_is_identified_by_the_reason() -> None:
    bare = {name: value for name, value in reading().items() if name != "valueQuantity"}
    reasons = [{}, {"dataAbsentReason": {"text": "off"}}, {"dataAbsentReason": {"text": "error"}}]
    assert len({identity_of(bare | reason) for reason in reasons}) == len(reasons)


# -- content --------------------------------------------------------------------------------------------------------------


def test_content_with_other_references_to_the_same_entries_has_the_same_identity() -> None:
    member = identity_of(gmi())
    first = identity_of(summary(urn(1), urn(2)), **{urn(1): member, urn(2): "urn:uuid:x"})
    again = identity_of(summary("Observation/g", urn(8)), **{"Observation/g": member, urn(8): "urn:uuid:x"})
    assert first == again
    assert first == identity_of(summary(urn(1), urn(2)), **{urn(1): "urn:uuid:x", urn(2): member})
    assert first != identity_of(summary(urn(1), urn(2)), **{urn(1): "urn:uuid:y", urn(2): member})
    assert first != identity_of(summary(urn(1), urn(2)))


def test_a_reference_with_escapes_is_replaced_like_any_other() -> None:
    odd = 'urn:"odd\\"\n'
    assert identity_of(summary(odd), **{odd: "urn:uuid:x"}) == identity_of(summary(urn(1)), **{urn(1): "urn:uuid:x"})


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"meta": {"versionId": "2"}},
        {"text": {"div": "<div/>"}},
        {"identifier": [{"system": IDENTITY_SYSTEM, "value": identity_of(summary())}]},
    ],
)
def test_elements_that_a_server_adds_do_not_change_the_identity(change: dict[str, Any]) -> None:
    assert identity_of(summary(**change)) == identity_of(summary())


@pytest.mark.parametrize(
    "change",
    [
        {"identifier": [{"system": "http://x", "value": "1"}]},
        {"identifier": ["x"]},
        {"identifier": "x"},
        {"issued": "2025-01-01T00:00:00Z"},
        {"effectivePeriod": {"start": "2025"}},
        {"component": []},
    ],
)
def test_any_other_element_changes_the_identity(change: dict[str, Any]) -> None:
    assert identity_of(summary(**change)) != identity_of(summary())


# -- stamping -------------------------------------------------------------------------------------------------------------

OWN = identity_of(reading())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [{"system": IDENTITY_SYSTEM, "value": OWN}]),
        ([], [{"system": IDENTITY_SYSTEM, "value": OWN}]),
        ([{"value": "1"}], [{"value": "1"}, {"system": IDENTITY_SYSTEM, "value": OWN}]),
        (
            [{"system": IDENTITY_SYSTEM, "value": OWN, "use": "official"}],
            [{"system": IDENTITY_SYSTEM, "value": OWN, "use": "official"}],
        ),
        # the conditional create asks for system and value, so a value of another system would not be found
        (
            [{"system": "http://x", "value": OWN}],
            [{"system": "http://x", "value": OWN}, {"system": IDENTITY_SYSTEM, "value": OWN}],
        ),
        ([5, None, "x"], [5, None, "x", {"system": IDENTITY_SYSTEM, "value": OWN}]),
        ({"value": "1"}, [{"value": "1"}, {"system": IDENTITY_SYSTEM, "value": OWN}]),
    ],
)
def test_the_identity_is_added_to_the_identifiers(given: Any, expected: list[Any]) -> None:
    resource = reading() if given is None else reading(identifier=given)
    assert decode(stamp(entry_of(resource), OWN, {}))["identifier"] == expected


def test_a_stamped_resource_keeps_the_order_and_the_digits_that_were_sent() -> None:
    sent = b'{"resourceType":"Observation","x":[{"y":5.60}],"valueQuantity":{"value":100.0},"a":"\xc3\xa4"}'
    stamped = stamp(entry_of(decode(sent)), OWN, {})
    assert stamped == sent[:-1] + b',"identifier":' + encode([{"system": IDENTITY_SYSTEM, "value": OWN}]) + b"}"


def test_only_references_are_replaced() -> None:
    odd = 'urn:"odd\\"'
    resource = summary(urn(1), odd, "#x", note=[{"text": f'"reference":"{urn(1)}"'}], x={"reference": urn(11)})
    stored = decode(stamp(entry_of(resource), OWN, {urn(1): "Observation/7", odd: 'a"b'}))
    assert [member["reference"] for member in stored["hasMember"]] == ["Observation/7", 'a"b', "#x"]
    assert stored["note"] == resource["note"]
    assert stored["x"] == {"reference": urn(11)}


@pytest.mark.parametrize(
    ("identifier", "foreign"),
    [
        ([{"system": IDENTITY_SYSTEM, "value": OWN}], False),
        ([{"system": IDENTITY_SYSTEM, "value": identity_of(reading(1))}], True),
        ([{"system": IDENTITY_SYSTEM, "value": identity_of(reading(1)).upper()}], True),
        ([{"system": IDENTITY_SYSTEM, "value": OWN.upper()}], True),
        ([{"system": IDENTITY_SYSTEM, "value": f"{OWN} "}], True),
        ([{"value": "1"}, {"system": IDENTITY_SYSTEM, "value": identity_of(reading(1))}], True),
        ([{"system": IDENTITY_SYSTEM, "value": "urn:uuid:2f5a7e54-0f5e-4c3f-9c5e-3f1f0f4f5a6b"}], False),  # version 4
        ([{"system": "http://x", "value": identity_of(reading(1))}], False),
        ([{"system": IDENTITY_SYSTEM, "value": 5}, {"system": IDENTITY_SYSTEM}, IDENTITY_SYSTEM, None], False),
        (IDENTITY_SYSTEM, False),
        ({"system": IDENTITY_SYSTEM, "value": 5}, False),
    ],
)
def test_another_entrys_identity_is_recognised(identifier: Any, foreign: bool) -> None:
    assert has_foreign_identity(entry_of(reading(identifier=identifier)), OWN) == foreign


def test_quotes_in_a_value_cannot_imitate_another_key() -> None:
    assert identity_of(reading(0, device={"reference": "a"}), devices={"a": {"serialNumber": 'x","y'}}) != identity_of(
        reading(0, device={"reference": "a"}), devices={"a": {"serialNumber": "x"}}
    )
