"""Attacks by references: the wrong patient, links to another patient's data, finding out what exists, and cost.

None of them may be stored, reveal whether a resource exists, or take hundreds of requests to the upstream.
"""

from copy import deepcopy
from typing import Any

import pytest
from support.client import XML
from support.fake_upstream import before, searches, transactions
from support.proxying import OTHER, World, counted, entry_rules, locations, proxying, statuses
from support.r4 import FHIR_XML

from cgm_proxy.receiver import referenced

Json = dict[str, Any]

BASES = {"relative": "", "public": "http://localhost:8080/fhir/", "upstream": "{upstream}/"}


def based(world: World, base: str, reference: str) -> str:
    return BASES[base].format(upstream=world.fake.url) + reference


def device_entry(world: World, full_url: str, **more: Any) -> Json:
    device = deepcopy(world.readings(1, device=True)["entry"][0])
    assert device["resource"]["resourceType"] == "Device"
    device["resource"] |= more
    return device | {"fullUrl": full_url}


def linked(entry: Json, reference: str, element: str = "derivedFrom") -> Json:
    """Return a reading that has a reference in one of its elements."""
    copy, link = deepcopy(entry), {"reference": reference}
    many = element in {"derivedFrom", "focus", "performer", "basedOn", "partOf", "hasMember"}
    match element:
        case "extension":
            copy["resource"]["extension"] = [{"url": "http://x.org/link", "valueReference": link}]
        case "primitive":
            copy["resource"]["_status"] = {"extension": [{"url": "http://x.org/link", "valueReference": link}]}
        case "contained":
            held = {"resourceType": "Basic", "id": "held", "code": {"text": "x"}, "subject": link}
            copy["resource"] |= {"contained": [held], "focus": [{"reference": "#held"}]}
        case _:
            copy["resource"][element] = [link] if many else link
    return copy


async def anothers(world: World, name: str = "of-other", **more: Any) -> str:
    """Store a reading of the other patient; return the reference to it."""
    stored = world.readings(1)["entry"][0]["resource"] | {"id": name, "subject": {"reference": OTHER}} | more
    await world.put(stored)
    return f"Observation/{name}"


# ---- the wrong patient


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["batch", "transaction"])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_no_entry_can_take_the_patients_name(base: str, kind: str, mode: str) -> None:
    async with proxying(mode=mode) as world:
        bundle = world.readings(2) | {"type": kind}
        device = device_entry(world, based(world, base, world.about))
        del device["resource"]["patient"]
        bundle["entry"].append(device)
        answer = await world.submit(bundle)
        if mode == "observe":
            assert statuses(answer) == [201] * 3
        elif kind == "batch":
            assert statuses(answer) == [201, 201, 400]
            assert entry_rules(answer, 2) == ["entry-full-url"]
        else:
            assert (answer.status, answer.rules) == (400, ["entry-full-url"])
            assert await world.count() == 0
            return
        assert await world.count() == 2
        alone = await world.submit(world.readings(2))
        assert statuses(alone) == [200, 200]
        assert locations(alone) == locations(answer)[:2]


@pytest.mark.parametrize(
    "full_url", ["Organization/1", "https://x.org/fhir/Observation/1", "https://x.org/fhir/Patient/1/"]
)
async def test_a_full_url_of_another_type_is_refused(full_url: str) -> None:
    async with proxying() as world:
        answer = await world.submit(
            world.readings(1) | {"entry": [device_entry(world, full_url), *world.readings(1)["entry"]]}
        )
        assert statuses(answer) == [400, 201]
        assert entry_rules(answer) == ["entry-full-url"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("spelled", BASES)
async def test_an_entry_cannot_take_the_name_of_a_stored_resource(base: str, spelled: str) -> None:
    async with proxying() as world:
        stored = world.readings(3)["entry"][2]["resource"] | {"id": "stored"}
        await world.put(stored)
        entries = world.readings(2)["entry"]
        entries[0]["fullUrl"] = based(world, base, "Observation/stored")
        entries[1] = linked(entries[1], based(world, spelled, "Observation/stored"))
        answer = await world.submit(world.readings(1) | {"entry": entries})
        assert statuses(answer) == [400, 422]
        assert [entry_rules(answer, n) for n in (0, 1)] == [["entry-full-url"], ["reference-refused"]]
        assert await world.count() == 1


async def test_a_name_of_the_submitters_own_server_stays_a_name() -> None:
    """`Observation/stored` in a Bundle from another server is that server's, even if this server has one as well."""
    async with proxying() as world:
        await world.put(world.readings(3)["entry"][2]["resource"] | {"id": "stored"})
        entries = world.readings(2)["entry"]
        entries[0]["fullUrl"] = "https://vendor.example/fhir/Observation/stored"
        entries[1] = linked(entries[1], "Observation/stored")
        answer = await world.submit(world.readings(1) | {"entry": entries})
        assert statuses(answer) == [201, 201]
        (link,) = (await world.ask_store("GET", str(locations(answer)[1]).partition("/_history")[0])).body[
            "derivedFrom"
        ]
        assert str(locations(answer)[0]).startswith(link["reference"])


# ---- links to another patient

#: What leads to the other patient: the reference, and the rule that refuses it.
LEADS = {
    "the patient": (OTHER, "reference-other-patient"),
    "a version of the patient": (f"{OTHER}/_history/1", "reference-other-patient"),
    "the patient by a search": ("Patient?identifier=http://x.org|other", "reference-unknown"),
    "a reading": ("Observation/of-other", "reference-unknown"),
    "a version of a reading": ("Observation/of-other/_history/1", "reference-unknown"),
    "a reading by a search": ("Observation?identifier=http://x.org|of-other", "reference-unknown"),
    "a reading by its patient": (f"Observation?subject={OTHER}", "reference-unknown"),
    "a device": ("Device/of-other", "reference-unknown"),
    "an order": ("ServiceRequest/of-other", "reference-unknown"),
    "a document": ("DocumentReference/of-other", "reference-unknown"),
    "what names nobody": ("Appointment/of-other", "reference-unknown"),
}
ELEMENTS = ("derivedFrom", "focus", "extension", "primitive", "contained")


async def with_another_patient(world: World) -> None:
    name = {"identifier": [{"system": "http://x.org", "value": "other"}]}
    await world.put({"resourceType": "Patient", "id": OTHER.partition("/")[2], **name})
    await anothers(world, identifier=[{"system": "http://x.org", "value": "of-other"}])
    subject = {"subject": {"reference": OTHER}}
    await world.put({"resourceType": "Device", "id": "of-other", "patient": {"reference": OTHER}})
    code = {"code": {"text": "x"}}
    await world.put(
        {"resourceType": "ServiceRequest", "id": "of-other", "status": "active", "intent": "order"} | subject | code
    )
    document = {"status": "current", "content": [{"attachment": {"title": "x"}}]}
    await world.put({"resourceType": "DocumentReference", "id": "of-other"} | subject | document)
    who = {"status": "booked", "participant": [{"actor": {"reference": OTHER}, "status": "accepted"}]}
    await world.put({"resourceType": "Appointment", "id": "of-other"} | who)


@pytest.mark.parametrize("base", BASES)
async def test_no_reference_in_any_position_leads_to_another_patient(base: str) -> None:
    async with proxying() as world:
        await with_another_patient(world)
        plain = world.readings(len(LEADS) * len(ELEMENTS))["entry"]
        cases = [(reference, rule, element) for reference, rule in LEADS.values() for element in ELEMENTS]
        entries = [linked(e, based(world, base, r), name) for e, (r, _, name) in zip(plain, cases, strict=True)]
        answer = await world.submit(world.readings(1) | {"entry": entries})
        found = [(case[0], case[2], entry_rules(answer, n)[-1:]) for n, case in enumerate(cases)]
        assert found == [(reference, element, [rule]) for reference, rule, element in cases]
        assert await world.count() == 0


async def test_what_is_the_patients_or_nobodys_may_be_referenced() -> None:
    async with proxying() as world:
        readings = world.readings(7)["entry"]
        await world.put(
            readings.pop()["resource"] | {"id": "mine", "identifier": [{"system": "http://x.org", "value": "mine"}]}
        )
        await world.put({"resourceType": "Device", "id": "hospitals"})
        await world.put({"resourceType": "Practitioner", "id": "p"})
        order = {"status": "active", "intent": "order", "code": {"text": "x"}, "subject": {"reference": world.about}}
        await world.put({"resourceType": "ServiceRequest", "id": "mine"} | order)
        links = [
            ("derivedFrom", "Observation/mine"),
            ("derivedFrom", "Observation?identifier=http://x.org|mine"),
            ("device", "Device/hospitals"),
            ("performer", "Practitioner/p"),
            ("performer", world.about),
            ("basedOn", "ServiceRequest/mine"),
        ]
        entries = [linked(e, r, name) for e, (name, r) in zip(readings, links, strict=True)]
        answer = await world.submit(world.readings(1) | {"entry": entries})
        assert counted(answer) == {201: 6}, answer.data
        stored = (await world.ask_store("GET", str(locations(answer)[1]).partition("/_history")[0])).body
        assert stored["derivedFrom"] == [{"reference": "Observation/mine"}]


MALFORMED = [
    "/Patient/other",
    "./Patient/other",
    "x/Patient/other",
    "Patient/other/",
    "Patient/other#x",
    "Patient",
    "",
    "Patient/o_o",
]
MALFORMED += [
    "http://localhost:8080/fhir//Patient/other",
    "http://x.org/Patient?identifier=a",
    "{upstream}/Patient/other?x=y",
]
MALFORMED += ["Patient%2Fother", "Observation/", "URN:uuid:7", "http://x.org/fhir/Patient/other"]


@pytest.mark.parametrize("reference", MALFORMED)
async def test_a_reference_that_can_be_read_in_several_ways_is_refused(reference: str) -> None:
    async with proxying() as world:
        (entry,) = world.readings(1)["entry"]
        answer = await world.submit(
            world.readings(1) | {"entry": [linked(entry, reference.format(upstream=world.fake.url), "focus")]}
        )
        assert statuses(answer) == [422]
        assert await world.count() == 0


@pytest.mark.parametrize("condition", ["identifier=http://x.org|of-other", f"subject={OTHER}"])
@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_a_condition_that_matches_another_patients_resource_is_no_link_to_it(condition: str, kind: str) -> None:
    async with proxying() as world:
        await with_another_patient(world)
        entries = world.readings(3)["entry"]
        entries[0] |= {"fullUrl": "urn:uuid:0b0fb34f-4fd6-4e10-9d6e-0cf1a7ad2cb1"}
        entries[0]["request"]["ifNoneExist"] = condition
        entries[1] = linked(entries[1], entries[0]["fullUrl"])
        answer = await world.submit(world.readings(1) | {"entry": entries, "type": kind})
        if kind == "batch":
            assert statuses(answer) == [409, 424, 201]
            assert entry_rules(answer) == ["condition-other-patient"]
        else:
            assert (answer.status, answer.rules[0]) == (409, "condition-other-patient")
        assert await world.count() == int(kind == "batch")


@pytest.mark.parametrize("reference", [r for r, _ in LEADS.values()])
async def test_a_single_create_links_to_no_other_patient(reference: str) -> None:
    async with proxying(detection="content") as world:
        await with_another_patient(world)
        resource = linked(world.readings(1)["entry"][0], reference, "focus")["resource"]
        answer = await world.request("POST", "Observation", resource)
        assert answer.status == 422
        as_xml = FHIR_XML.to_xml(resource)
        assert (await world.request("POST", "Observation", as_xml, Content_Type=XML)).status == 422
        assert await world.count() == 0


async def test_a_conditional_reference_is_searched_for_with_the_submitters_own_authority() -> None:
    async with proxying(upstream__token="service") as world:
        reading = world.readings(1)["entry"][0]["resource"] | {"id": "mine"}
        await world.put(reading | {"identifier": [{"system": "http://x.org", "value": "mine"}]})
        entries = world.readings(3)["entry"][1:]
        entries = [
            linked(entries[0], "Observation?identifier=http://x.org|mine"),
            linked(entries[1], "Observation/mine"),
        ]
        answer = await world.submit(world.readings(1) | {"entry": entries}, Authorization="Bearer submitter")
        assert counted(answer) == {201: 2}
        used = [
            (b"http://x.org|mine" in each.body, each.headers["Authorization"])
            for each in world.fake.received(searches("Observation"))
        ]
        assert used[:2] == [(True, "Bearer submitter"), (False, "Bearer service")]


async def test_a_link_behind_many_others_is_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on what is looked up refuses; it lets nothing through."""
    monkeypatch.setattr(referenced, "LITERALS", 300)
    monkeypatch.setattr(referenced, "CONDITIONALS", 3)
    async with proxying() as world:
        await with_another_patient(world)
        mine = world.readings(500)["entry"][-1]["resource"] | {"id": "mine"}
        await world.put(mine)
        entries = world.readings(5)["entry"]
        bogus = [{"reference": f"Observation/bogus-{n}"} for n in range(290)]
        entries[1]["resource"]["derivedFrom"] = bogus[:200]
        entries[2]["resource"]["derivedFrom"] = [*bogus, {"reference": "Observation/of-other"}]
        more = [{"reference": f"Observation/more-{n}"} for n in range(20)]
        searched = [{"reference": f"Observation?identifier=http://x.org|{n}"} for n in range(4)]
        entries[3]["resource"]["derivedFrom"] = [*more, {"reference": "Observation/mine"}, *searched]
        entries[4] = linked(entries[4], "Observation/mine")
        answer = await world.submit(world.readings(1) | {"entry": entries})
        assert statuses(answer) == [201, 422, 422, 422, 422]
        assert entry_rules(answer, 1) == ["reference-unknown"] * 200
        assert entry_rules(answer, 2) == ["reference-unknown"] * 291
        assert entry_rules(answer, 3)[-5:] == ["references-too-many", *["reference-unknown"] * 3, "references-too-many"]
        assert entry_rules(answer, 4) == ["references-too-many"]
        assert len(world.fake.received(searches("Observation", "_id"))) == 2


# ---- an oracle


async def dialogue(world: World, reference: str) -> tuple[list[str], list[int], Any]:
    """Submit a link; return what the upstream was asked, and the answer without the reference in question."""
    entries = world.readings(2)["entry"]
    world.fake.seen.clear()
    answer = await world.submit(world.readings(1) | {"entry": [linked(entries[0], reference), entries[1]]})
    issues = answer.body["entry"][0]["response"]["outcome"]["issue"]
    return world.fake.dialogue, statuses(answer), [str(issue).replace(reference, "R") for issue in issues]


@pytest.mark.parametrize("token", ["", "service"])
@pytest.mark.parametrize("kind", ["Observation", "Device"])
async def test_a_link_does_not_tell_whether_another_patient_has_such_a_resource(token: str, kind: str) -> None:
    async with proxying(**({"upstream__token": token} if token else {})) as world:
        await with_another_patient(world)
        await world.submit(world.readings(2))
        found = await dialogue(world, f"{kind}/of-other")
        assert found == await dialogue(world, f"{kind}/nobodys")
        assert found[1] == [422, 200]
        world.fake.script(searches(kind, "_id"), before(200, {"resourceType": "Bundle", "type": "searchset"}))
        assert found == await dialogue(world, f"{kind}/of-other")  # the server hides what the submitter may not see


async def test_a_rule_about_what_a_reference_means_tells_nothing_of_another_patients_resource() -> None:
    """The summary's profile looks into its members."""
    async with proxying(upstream__token="service") as world:
        bundle = world.readings(2, summary=True, dialect="1.0.0")
        gmi = next(each for each in bundle["entry"] if "97506-0" in str(each["resource"]["code"]))
        await world.put(gmi["resource"] | {"id": "of-other", "subject": {"reference": OTHER}})
        summary = bundle["entry"][-1]["resource"]
        outcomes = []
        for name in ("of-other", "of-nobody"):
            summary["hasMember"] = [{"reference": f"Observation/{name}"}]
            answer = await world.submit(bundle, "1.0.0")
            outcome = str(answer.body["entry"][-1]["response"]["outcome"])
            assert "reference-unknown" in outcome
            outcomes.append(outcome.replace(name, "R"))
        assert outcomes[0] == outcomes[1]


async def test_what_the_submitter_may_not_look_up_is_left_to_the_upstream() -> None:
    async with proxying() as world:
        await with_another_patient(world)
        world.fake.always(searches("Device"), before(403))
        entries = world.readings(2)["entry"]
        entries = [linked(entries[0], "Device/none", "device"), linked(entries[1], "Observation/of-other")]
        answer = await world.submit(world.readings(1) | {"entry": entries})
        assert statuses(answer) == [400, 422]
        assert entry_rules(answer, 0) == ["upstream-refused"]
        conditional = [linked(entries[0], "Device?identifier=http://x.org|1", "device")]
        answer = await world.submit(world.readings(1) | {"entry": conditional})
        assert (statuses(answer), entry_rules(answer)) == ([422], ["reference-unknown"])


async def test_a_type_that_the_upstream_does_not_know_leads_nowhere() -> None:
    async with proxying() as world:
        world.fake.always(searches("MolecularSequence"), before(404))
        entries = world.readings(2)["entry"]
        answer = await world.submit(
            world.readings(1) | {"entry": [linked(entries[0], "MolecularSequence/1"), entries[1]]}
        )
        assert statuses(answer) == [422, 201]


# ---- hundreds of requests for one mistake

#: A submission may cost this many requests of the upstream, however it is refused.
FEW = 20


async def cost(world: World, entries: list[Json]) -> tuple[dict[int, int], int]:
    """Submit entries; return how often each status was answered, and the number of requests to the upstream."""
    world.fake.seen.clear()
    answer = await world.submit(world.readings(1) | {"entry": entries})
    return counted(answer), len(world.fake.seen)


@pytest.mark.parametrize("element", ["device", "performer", "extension"])
@pytest.mark.parametrize("each_its_own", [False, True])
async def test_many_readings_with_missing_references_cost_few_requests(element: str, each_its_own: bool) -> None:
    async with proxying() as world:
        kind = "Practitioner" if element == "performer" else "Device"
        entries = [
            linked(entry, f"{kind}/none-{n if each_its_own else ''}", element)
            for n, entry in enumerate(world.readings(400)["entry"])
        ]
        refused, requests = await cost(world, entries)
        assert refused == {400 if kind == "Practitioner" else 422: 400}
        assert requests < FEW + 10 * (each_its_own and kind == "Practitioner")


async def test_what_is_found_missing_refuses_the_rest_of_the_submission_as_well() -> None:
    """What is not looked up before is looked up when the upstream refuses it; until then other chunks are under way."""
    async with proxying() as world:
        entries = [linked(entry, "Practitioner/none", "performer") for entry in world.readings(1500)["entry"]]
        refused, requests = await cost(world, entries)
        assert refused == {400: 1500}
        assert requests < FEW + 10


@pytest.mark.parametrize("kind", ["Practitioner", "Device"])
async def test_one_reading_with_a_missing_reference_costs_few_requests(kind: str) -> None:
    async with proxying() as world:
        entries = world.readings(400)["entry"]
        entries[210] = linked(entries[210], f"{kind}/none", "performer" if kind == "Practitioner" else "device")
        refused, requests = await cost(world, entries)
        assert refused == {400 if kind == "Practitioner" else 422: 1, 201: 399}
        assert requests < FEW


@pytest.mark.parametrize(("send", "most"), [("auto", FEW), ("batch", FEW), ("single", 100)])
async def test_readings_of_a_patient_who_was_deleted_meanwhile_cost_few_requests(send: str, most: int) -> None:
    """One by one, each of up to 8 chunks in flight has sent its 10 entries before anything is known."""
    async with proxying(upstream__send=send) as world:
        entries = world.readings(400)["entry"]
        answer = await world.submit(world.readings(1) | {"entry": [linked(entries[0], OTHER)]})
        assert statuses(answer) == [422]  # the proxy knows the patient now, of whom nothing is stored
        assert (await world.ask_store("DELETE", world.about)).status in {200, 204}
        refused, requests = await cost(world, entries)
        assert refused == {400: 400}
        assert requests < most


async def test_readings_that_the_upstream_refuses_for_reasons_of_its_own_cost_few_requests() -> None:
    """Each is refused for itself; a batch tells which."""
    async with proxying() as world:
        entries = world.readings(400)["entry"]
        for entry in entries[::2]:
            entry["resource"]["performer"] = [{"reference": f"Practitioner/{entry['fullUrl'][-12:]}"}]
        refused, requests = await cost(world, entries)
        assert refused == {400: 200, 201: 200}
        assert requests < FEW + 10
        assert await world.count() == 200


async def test_a_refusal_that_names_the_patient_refuses_only_the_entries_that_it_is_about() -> None:
    """A server may name the patient whatever it refuses."""
    async with proxying() as world:
        entries = world.readings(200)["entry"]
        for entry in entries[::20]:
            entry["resource"]["performer"] = [{"reference": "Practitioner/none"}]
        issue = {"severity": "error", "code": "processing", "diagnostics": f"no: {world.about}, Practitioner/none"}
        refusal = {"resourceType": "OperationOutcome", "issue": [issue]}
        world.fake.always(
            lambda asked: transactions(asked) and b"Practitioner/none" in asked.body, before(400, refusal)
        )
        refused, requests = await cost(world, entries)
        assert refused == {400: 10, 201: 190}
        assert requests < FEW
