"""Identities: the same content in other words is stored once, other content is stored, and nobody can claim an identity ahead."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.proxying import World, counted, entry_rules, locations, proxying, statuses
from support.submissions import PATIENT, device, entry, gmi, localize, reading, report, submitted, summary, urn

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.json_values import JsonObject, nested_objects
from cgm_proxy.core.submission.canonical import UNORDERED
from cgm_proxy.core.submission.identity import (
    IDENTITY_SYSTEM,
    IdentityScope,
    compute_identity,
    has_foreign_identity,
)

SYSTEM = "http://acme.example/devices"
OWN = "urn:uuid:0b0fb34f-4fd6-8e10-9d6e-0cf1a7ad2cb1"


def identity_of(
    resource: JsonObject, stored: Mapping[str, JsonObject] | None = None, entries: Mapping[str, str] | None = None
) -> str:
    """Return the identity of a resource, where references mean `stored` resources or `entries`, given by their identity."""
    scope = IdentityScope(PATIENT, (entries or {}).get, (stored or {}).get, localize)
    return compute_identity(submitted(entry(resource)).entries[0], scope)


# -- the device of a reading ----------------------------------------------------------------------------------------------


def contained(**fields: Any) -> JsonObject:
    return {"device": {"reference": "#d"}, "contained": [{"resourceType": "Device", "id": "d", **fields}]}


def logical(value: str, system: str = SYSTEM) -> JsonObject:
    return {"device": {"identifier": {"system": system, "value": value}}}


def literal(reference: str, **more: Any) -> JsonObject:
    return {"device": {"reference": reference, **more}}


STORED = {
    "Device/serial": device(id="serial", serialNumber="S1"),
    "Device/named": device(id="named", identifier=[{"system": SYSTEM, "value": "1"}]),
    "Device/plain": device(id="plain", udiCarrier=[{"deviceIdentifier": "M"}]),
    "Device/plain2": device(id="plain2", udiCarrier=[{"deviceIdentifier": "M"}]),
    "Device/own": device(id="own", identifier=[{"system": IDENTITY_SYSTEM, "value": OWN}]),
}
STORED |= {f"Device?identifier={SYSTEM}|1": STORED["Device/named"], "Device?udi-di=M": STORED["Device/plain"]}
STORED |= {f"{name}/_history/7": found for name, found in STORED.items() if "?" not in name}
STORED |= {f"https://public.example/fhir/{name}": found for name, found in STORED.items()}
ENTRIES = {urn(1): OWN, urn(2): OWN.replace("0b0", "0b1")}

#: Readings of one device in each row, however it is named; those of different rows are different.
DEVICES: dict[str, list[JsonObject]] = {
    "none": [{}, {"device": {}}],
    "by serial": [literal("Device/serial"), literal("Device/serial/_history/7"), contained(serialNumber="S1")],
    "by another serial": [contained(serialNumber="S2"), contained(serialNumber="S2", manufacturer="Acme")],
    "by identifier": [
        logical("1"),
        literal("Device/named"),
        literal("https://public.example/fhir/Device/named"),
        literal(f"Device?identifier={SYSTEM}|1"),
        literal("Device/gone", identifier={"system": SYSTEM, "value": "1"}),
        contained(identifier=[{"system": SYSTEM, "value": "2"}, {"system": SYSTEM, "value": "1"}]),
        contained(identifier=[{"system": SYSTEM, "value": "1"}], deviceName=[{"name": "x", "type": "other"}]),
    ],
    "by another identifier": [logical("2"), contained(identifier=[{"system": SYSTEM, "value": "2"}])],
    "by an identifier of another system": [logical("1", "http://other.example")],
    "by a UUID of version 8 in a system of its own": [logical(OWN, "http://other.example")],
    "by another UUID of version 8": [logical(OWN.replace("0b0", "0b2"), "http://other.example")],
    "by itself": [literal("Device/plain"), literal("Device/plain/_history/7"), literal("Device?udi-di=M")],
    "by itself, of the same model": [literal("Device/plain2")],
    "by its entry": [literal(urn(1)), literal("Device/own"), literal("https://public.example/fhir/Device/own")],
    "by another entry": [literal(urn(2))],
    "by a reference that leads to nothing": [literal("Device/gone"), literal("http://up:8081/fhir/Device/gone")],
    "by another such reference": [literal("Device/gone2")],
    "by one to another server": [literal("https://elsewhere.example/fhir/Device/gone")],
    "by a conditional reference that leads to nothing": [literal(f"Device?identifier={SYSTEM}|9")],
    "by another such condition": [literal(f"Device?identifier={SYSTEM}|8")],
    "by content": [
        contained(manufacturer="Acme"),
        {
            "device": {"reference": "#other"},
            "contained": [{"manufacturer": "Acme", "resourceType": "Device", "id": "other"}],
        },
    ],
    "by other content": [contained(manufacturer="Else")],
    "by name": [{"device": {"display": "Left arm"}}],
    "by another name": [{"device": {"display": "Right arm"}}],
    "by the identity that a contained copy has": [
        contained(identifier=[{"system": IDENTITY_SYSTEM, "value": OWN}]),
    ],
    "by the identity that another contained copy has": [
        contained(identifier=[{"system": IDENTITY_SYSTEM, "value": OWN.replace("0b0", "0b2")}]),
    ],
}


def test_a_device_is_the_same_however_it_is_named_and_two_devices_never_make_one_reading() -> None:
    found = {name: {identity_of(reading(**row), STORED, ENTRIES) for row in rows} for name, rows in DEVICES.items()}
    assert {name: len(identities) for name, identities in found.items() if len(identities) != 1} == {}
    assert len(set().union(*found.values())) == len(DEVICES)


@pytest.mark.parametrize(
    "naming",
    [
        lambda value: contained(identifier=[{"system": SYSTEM, "value": value}]),
        lambda value: contained(manufacturer=value),
        logical,
        lambda value: literal(f"Device/plain{value}"),
        lambda value: {"device": {"display": value}},
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_readings_of_two_devices_with_one_value_at_one_instant_are_both_stored(
    naming: Callable[[str], JsonObject], apart: bool
) -> None:
    async with proxying() as world:
        for number in (1, 2):
            await world.put(device(id=f"plain{number}", patient={"reference": world.about}))
        bundle = world.readings(1)
        (one,) = bundle["entry"]
        entries = [
            {**deepcopy(one), "fullUrl": urn(number), "resource": {**one["resource"], **naming(value)}}
            for number, value in enumerate(("1", "2"))
        ]
        bundles = [bundle | {"entry": part} for part in ([entries[:1], entries[1:]] if apart else [entries])]
        answers = [await world.submit(each) for each in bundles]
        assert [status for answer in answers for status in statuses(answer)] == [201, 201]
        assert await world.count() == 2
        assert [counted(await world.submit(each)) for each in bundles] == [{200: len(b["entry"])} for b in bundles]
        assert await world.count() == 2


async def test_a_stored_device_is_the_same_by_its_id_and_by_a_search_and_another_is_another() -> None:
    async with proxying(listen__public_url="https://public.example/fhir") as world:
        about = {"patient": {"reference": world.about}}
        await world.put(device(id="d1", serialNumber="7", identifier=[{"system": SYSTEM, "value": "1"}], **about))
        await world.put(device(id="d2", identifier=[{"system": SYSTEM, "value": "2"}], **about))
        bundle = world.readings(1)
        for reference, status in [
            (f"Device?identifier={SYSTEM}|1", 201),
            ("Device/d1", 200),
            ("https://public.example/fhir/Device/d1", 200),
            (f"https://public.example/fhir/Device?identifier={SYSTEM}|1", 200),
            (f"Device?identifier={SYSTEM}|2", 201),
            ("Device/d2", 200),
        ]:
            bundle["entry"][0]["resource"]["device"] = {"reference": reference}
            assert statuses(await world.submit(bundle)) == [status]
        assert sorted(each["device"]["reference"] for each in await world.stored()) == ["Device/d1", "Device/d2"]


# -- one content in many forms --------------------------------------------------------------------------------------------

#: References that mean the same, in each row.
SPELLINGS = [
    [urn(1), "Observation/a", "https://public.example/fhir/Observation/a", "Observation/a/_history/1"],
    [urn(2), "https://phone.example/Observation/b", "Observation/own"],
    ["Observation/7", "https://public.example/fhir/Observation/7", "http://up:8081/fhir/Observation/7/_history/2"],
    [PATIENT, f"https://public.example/fhir/{PATIENT}", f"HTTPS://PUBLIC.example:443/fhir/{PATIENT}"],
    ["Practitioner/1", "http://up:8081/fhir/Practitioner/1"],
]
OF_ENTRIES = dict.fromkeys(SPELLINGS[0], OWN) | dict.fromkeys(SPELLINGS[1][:2], OWN.replace("0b0", "0b1"))
OF_STORE = {
    "Observation/own": {
        "resourceType": "Observation",
        "id": "own",
        "identifier": [
            {"system": SYSTEM, "value": "1"},
            {"system": IDENTITY_SYSTEM, "value": OWN.replace("0b0", "0b1")},
        ],
    }
}

_CONTAINED = [
    {"resourceType": "Practitioner", "id": "p", "name": [{"family": "Peters", "given": ["Amy", "Ann"]}]},
    {"resourceType": "Organization", "id": "o", "name": "Clinic"},
]
_CODES = {
    "coding": [
        {"system": "http://loinc.org", "code": "97506-0"},
        {"system": "http://x", "code": "gmi", "display": "GMI"},
    ]
}
_PERIOD = {"start": "2016-12-31T23:59:60Z", "end": "2025-06-01T12:00:00.25Z"}
_EXTENSIONS = [
    {"url": "http://x/a", "valueDateTime": "2025-06-01T12:00:00Z"},
    {"url": "http://x/b", "extension": [{"url": "c", "valueInteger": 1}, {"url": "d", "valueDecimal": Decimal("0.1")}]},
]

#: Resources with everything that can be written in several forms.
RESOURCES: dict[str, JsonObject] = {
    "summary": summary(urn(1), urn(2), "Observation/7", effectivePeriod=_PERIOD, extension=_EXTENSIONS),
    "measure": gmi(
        effectivePeriod=_PERIOD,
        category=[_CODES, {"text": "x"}],
        valueQuantity={"value": Decimal("6.8"), "unit": "%"},
        performer=[{"reference": "#p"}, {"reference": "#o"}, {"reference": "Practitioner/1"}],
        derivedFrom=[{"reference": urn(1)}, {"reference": "Observation/7"}],
        component=[
            {"code": _CODES, "valueInteger": 100},
            {"code": _CODES, "valueDateTime": "2025-06-01T12:00:00Z"},
            {"code": {"text": "z"}, "valueQuantity": {"value": Decimal("-0.0050")}},
        ],
        note=[{"text": "6.80", "time": "2025-06-01T12:00:00Z"}, {"text": "2025-06-01T12:00:00Z"}],
        contained=_CONTAINED,
    ),
    "report": report(
        urn(1),
        urn(2),
        status="final",
        issued="2025-06-01T12:00:00.5Z",
        category=[_CODES, {"text": "x"}],
        resultsInterpreter=[{"reference": "#p"}, {"reference": "#o"}],
        presentedForm=[{"contentType": "application/pdf", "creation": "2025-06-01T12:00:00Z"}, {"data": "AAAA"}],
        contained=_CONTAINED,
    ),
    "device": device(
        identifier=[{"system": SYSTEM, "value": "1"}, {"system": SYSTEM, "value": "2"}],
        deviceName=[{"name": "x", "type": "user-friendly-name"}, {"name": "y", "type": "other"}],
        manufactureDate="2025-06-01T12:00:00Z",
        property=[{"type": _CODES, "valueQuantity": [{"value": 5}, {"value": Decimal("1e-7")}]}],
    ),
    "reading": reading(
        100,
        Decimal("105.50"),
        category=[_CODES, {"text": "x"}],
        device={"reference": "#d"},
        contained=[{"resourceType": "Device", "id": "d", "property": [{"type": _CODES, "valueCode": [_CODES]}]}],
        modifierExtension=_EXTENSIONS,
    ),
    "preliminary reading": {**reading(100), "status": "preliminary"},
    "reading without value": {
        **{name: value for name, value in reading(7).items() if name != "valueQuantity"},
        "dataAbsentReason": _CODES,
    },
}


def respelled(resource: JsonObject, random: Random) -> JsonObject:
    """Return the same content in another form."""
    ids = {held["id"]: f"id{random.randrange(9)}{held['id']}" for held in resource.get("contained", ())}
    written = {**resource, "meta": {"versionId": str(random.random())}, "id": "x", "text": {"div": "<div/>"}}
    subject = "patient" if resource["resourceType"] == "Device" else "subject"
    if random.random() < 0.5:
        written[subject] = {**written[subject], "display": "Amy Peters"}
    return in_other_words(written, "", ids, random)


def in_other_words(value: Any, name: str, ids: Mapping[str, str], random: Random) -> Any:
    """Return a value of the element `name` in another form; `ids` are the new ids of contained resources."""
    match value:
        case dict():
            members = [(key, in_other_words(inner, key, ids, random)) for key, inner in value.items()]
            if str(value.get("reference")).startswith("Observation/") and random.random() < 0.5:
                members.append(("type", "Observation"))
            random.shuffle(members)
            return dict(members)
        case list():
            items = [in_other_words(item, name, ids, random) for item in value]
            if name in UNORDERED:
                random.shuffle(items)
            return items
        case bool():
            return value
        case int() | Decimal():
            return another_number(value, random)
        case str() if name == "id":
            return ids.get(value, value)
        case str() if name == "reference":
            spellings = next((row for row in SPELLINGS if value in row), None)
            return random.choice(spellings) if spellings else f"#{ids.get(value[1:])}" if value[:1] == "#" else value
        case str() if value[10:11] == "T" and name != "text":
            return another_time(value, random)
    return value


def another_number(number: int | Decimal, random: Random) -> Decimal | int:
    plain = f"{Decimal(number):f}"
    zeros = "0" * random.randrange(4)
    texts = [plain, f"{plain}{'' if '.' in plain else '.'}0{zeros}", f"{Decimal(plain):e}"]
    chosen = random.choice(texts)
    return Decimal(chosen) if set(chosen) & set(".eE") else int(chosen)


def another_time(text: str, random: Random) -> str:
    leap = text[17:19] == "60"
    fraction = text[19:-1]
    minutes = random.randrange(-14 * 60, 14 * 60 + 1)
    moment = datetime.fromisoformat(f"{text[:17]}{'59' if leap else text[17:19]}+00:00")
    shifted = moment.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
    seconds = "60" if leap else shifted[17:19]
    fraction += ("0" if fraction else ".0") * random.randrange(2)
    zone = random.choice(["Z", "+00:00", "-00:00"]) if minutes == 0 else shifted[19:]
    return f"{shifted[:17]}{seconds}{fraction}{zone}"


SEEDS = st.integers(0, 2**32)


@settings(max_examples=300)
@given(st.sampled_from(sorted(RESOURCES)), SEEDS)
def test_the_same_content_in_another_form_has_the_same_identity(name: str, seed: int) -> None:
    expected = identity_of(RESOURCES[name], OF_STORE, OF_ENTRIES)
    other = decode(encode(respelled(RESOURCES[name], Random(seed))))
    assert identity_of(other, OF_STORE, OF_ENTRIES) == expected


#: Members of a reading that count, and those of others that do not.
COUNTED_IN_READINGS = {
    "code",
    "effectiveDateTime",
    "valueQuantity",
    "device",
    "modifierExtension",
    "dataAbsentReason",
    "status",
}
NOT_COUNTED = {"id", "unit", "display", "resourceType"}
UCUM = "http://unitsofmeasure.org"


@settings(max_examples=300)
@given(st.sampled_from(sorted(RESOURCES)), SEEDS)
def test_other_content_has_another_identity(name: str, seed: int) -> None:
    """One value of the resource is replaced by another one of its kind, and the result is written in another form."""
    sent = RESOURCES[name]
    counts = COUNTED_IN_READINGS if "reading" in name else sent.keys()
    part = {member: deepcopy(value) for member, value in sent.items() if member in counts}
    places = [
        (holder, key, value)
        for holder in nested_objects(part)
        for key, value in holder.items()
        if isinstance(value, str | int | Decimal) and key not in NOT_COUNTED and value != UCUM
    ]
    random = Random(seed)
    holder, key, value = random.choice([place for place in places if not str(place[2]).startswith("#")])
    holder[key] = different(key, value, random)
    changed = decode(encode(respelled(sent | part, random)))
    assert identity_of(changed, OF_STORE, OF_ENTRIES) != identity_of(sent, OF_STORE, OF_ENTRIES)


def different(key: str, value: Any, random: Random) -> Any:
    if isinstance(value, int | Decimal):
        return value + random.choice([1, -1, Decimal("0.0001")])
    if key == "reference":
        return random.choice(["Observation/8", urn(9), "https://elsewhere.example/fhir/Observation/a"])
    if value[10:11] == "T":
        return value.replace("2025", "2024").replace("2016", "2015")
    return f"{value}x"


async def test_a_submission_in_another_form_stores_nothing_again() -> None:
    """Summary, members, report and device, as another program would write them."""
    async with proxying(listen__public_url="https://public.example/fhir") as world:
        bundle = world.readings(3, summary=True, pdf=True, device=True)
        assert counted(await world.submit(bundle)) == {201: len(bundle["entry"])}
        stored = [await world.count(kind) for kind in ("Observation", "DiagnosticReport", "Device")]
        for seed in range(5):
            other = in_another_form(world, bundle, Random(seed))
            answer = await world.submit(other)
            assert counted(answer) == {200: len(bundle["entry"])}
            assert [await world.count(kind) for kind in ("Observation", "DiagnosticReport", "Device")] == stored


def in_another_form(world: World, bundle: JsonObject, random: Random) -> JsonObject:
    entries = deepcopy(bundle["entry"])
    for each in entries:
        each["resource"] = {**respelled(each["resource"], random)}
        each["resource"].pop("id")
        for holder in nested_objects(each["resource"]):
            if holder.get("reference") == world.about:
                holder["reference"] = random.choice([world.about, f"https://public.example/fhir/{world.about}"])
            holder.pop("text", None)
        each["resource"]["meta"] = {"versionId": "7", "profile": meta_of(bundle, each["fullUrl"])}
    random.shuffle(entries)
    return bundle | {"entry": entries}


def meta_of(bundle: JsonObject, full_url: str) -> list[str]:
    return next(each["resource"]["meta"]["profile"] for each in bundle["entry"] if each["fullUrl"] == full_url)


async def test_a_summary_of_stored_members_is_the_one_that_was_sent_with_them() -> None:
    async with proxying() as world:
        bundle = world.readings(2, summary=True)
        answer = await world.submit(bundle)
        assert counted(answer) == {201: len(bundle["entry"])}
        places = {
            each["fullUrl"]: str(place).partition("/_history/")[0]
            for each, place in zip(bundle["entry"], locations(answer), strict=True)
        }
        (found,) = [each for each in bundle["entry"] if "hasMember" in each["resource"]]
        for member in found["resource"]["hasMember"]:
            member["reference"] = places[member["reference"]]
        again = await world.submit(bundle | {"entry": [found]})
        assert statuses(again) == [200]
        assert str(locations(again)[0]).startswith(places[found["fullUrl"]])


# -- identities that others claim -----------------------------------------------------------------------------------------

FORGED = {
    "as it is": "{}",
    "a trailing space": "{} ",
    "a trailing newline": "{}\n",
    "a leading tab": "\t{}",
    "no-break spaces": "\u00a0{}\u00a0",
    "an ideographic space": "{}\u3000",
    "a zero-width space": "{}\u200b",
    "a byte order mark": "\ufeff{}",
    "a control character": "{}\u0001",
}


@pytest.mark.parametrize(
    "system", [IDENTITY_SYSTEM, f" {IDENTITY_SYSTEM}", f"{IDENTITY_SYSTEM}\n", IDENTITY_SYSTEM.upper()]
)
@pytest.mark.parametrize("value", [*FORGED.values()], ids=[*FORGED])
@pytest.mark.parametrize("change", [str, str.upper, lambda text: text.translate({ord("8"): "\uff18"})])
def test_what_a_store_could_take_for_another_identity_is_recognised(
    system: str, value: str, change: Callable[[str], str]
) -> None:
    for listed in ([], [{"system": SYSTEM, "value": "1"}]):
        forged = reading(identifier=[*listed, {"system": system, "value": value.format(change(OWN))}])
        assert has_foreign_identity(submitted(entry(forged)).entries[0], "urn:uuid:other")


@pytest.mark.parametrize(
    "value",
    ["1", OWN[:-1], f"{OWN}0", OWN.replace("-8e10", "-4e10"), OWN.replace("urn:uuid:", ""), f"{OWN}#1", "µ", "\\", ""],
)
def test_other_identifiers_are_the_submitters_own(value: str) -> None:
    own = reading(identifier=[{"system": IDENTITY_SYSTEM, "value": value}, {"system": SYSTEM, "value": OWN}])
    found = has_foreign_identity(submitted(entry(own)).entries[0], "urn:uuid:other")
    assert found == (value == f"{OWN}#1x")


@pytest.mark.parametrize("form", FORGED.values(), ids=FORGED)
async def test_a_future_identity_can_not_be_claimed_by_another_entry(form: str) -> None:
    async with proxying() as world:
        bundle = world.readings(2)
        await world.submit(bundle)
        future = sorted(each["identifier"][0]["value"] for each in await world.stored())
        for each in await world.stored():
            await world.ask_store("DELETE", f"Observation/{each['id']}")
        forged = world.readings(3) | {"entry": world.readings(3)["entry"][2:]}
        forged["entry"][0]["resource"]["identifier"] = [
            {"system": IDENTITY_SYSTEM, "value": form.format(value)} for value in future
        ]
        answer = await world.submit(forged)
        assert statuses(answer) == [422]
        assert set(entry_rules(answer)) <= {"identity-forged", "r4-value"}  # R4 allows few of these characters
        assert counted(await world.submit(bundle)) == {201: 2}


# -- a reading with another status ----------------------------------------------------------------------------------------

STATUSES = ["registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown"]


def with_status(bundle: JsonObject, status: str) -> JsonObject:
    changed = deepcopy(bundle)
    for each in changed["entry"]:
        each["resource"]["status"] = status
    return changed


@pytest.mark.parametrize("apart", [True, False])
async def test_no_status_of_a_reading_is_dropped(apart: bool) -> None:
    """A preliminary reading does not stand in the way of the final one, nor the final one of a correction."""
    async with proxying() as world:
        bundle = world.readings(2)
        given = [with_status(bundle, status) for status in STATUSES]
        for number, each in enumerate(given):
            for position, item in enumerate(each["entry"]):
                item["fullUrl"] = urn(10 * number + position)
        if not apart:
            given = [bundle | {"entry": [item for each in given for item in each["entry"]]}]
        for each in given:
            assert counted(await world.submit(each)) == {201: len(each["entry"])}
        assert sorted(each["status"] for each in await world.stored()) == sorted(2 * STATUSES)
        for each in given:
            assert counted(await world.submit(each)) == {200: len(each["entry"])}
        assert await world.count() == 2 * len(STATUSES)


async def test_no_single_reading_is_dropped_for_its_status_or_device() -> None:
    async with proxying(detection="content") as world:
        plain = world.readings(1)["entry"][0]["resource"]
        changes = [{"status": status} for status in STATUSES] + [
            logical("1"),
            logical("2"),
            contained(serialNumber="3"),
        ]
        for expected in (201, 200):
            answers = [await world.request("POST", "Observation", plain | change) for change in changes]
            assert [answer.status for answer in answers] == [expected] * len(changes)
        assert await world.count() == len(changes)


@pytest.mark.parametrize(
    ("sent", "fields", "expected"),
    [
        (reading(), {}, "8cf3b89c-1d7d-8b67-b08f-797334f9eebd"),
        (reading(**literal(urn(1))), {"serialNumber": "456789"}, "a455b317-9e56-8547-ab70-91deb70aa428"),
        (
            reading(**literal(urn(1))),
            {"identifier": [{"system": SYSTEM, "value": "1"}]},
            "b17f05d2-d804-8351-82bb-a4f6bcdd2433",
        ),
        ({**reading(), "status": "corrected"}, {}, "7d8ef8eb-9294-8031-95e5-060bf46da04b"),
    ],
)
def test_a_reading_has_the_identity_that_it_had_in_earlier_versions(
    sent: JsonObject, fields: JsonObject, expected: str
) -> None:
    """Stored readings carry it."""
    assert identity_of(sent, {urn(1): device(**fields)}, {urn(1): OWN}) == f"urn:uuid:{expected}"
