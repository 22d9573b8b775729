"""What servers say that they can do, and the rows that it chooses; entries taken apart where nothing is stored whole."""

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import pytest
from support.submissions import (
    device,
    entry,
    gmi,
    identified_entries,
    localize,
    reading,
    report,
    submitted,
    summary,
    urn,
)

from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.rest.create_requests import bundle, single
from cgm_proxy.core.rest.strategy import CREATING, SENDING, Abilities, Strategy, abilities, split_groups, strategy
from cgm_proxy.core.submission.plan import Plan, Planner
from cgm_proxy.settings.sections import UpstreamSettings

TYPES = ("Observation", "DiagnosticReport", "Device")


def statement(
    *interactions: str, name: str = "A server", types: Mapping[str, Mapping[str, Any]] | None = None, **each: Any
) -> dict[str, Any]:
    said = {"Patient": {}, **dict.fromkeys(TYPES, each)} if types is None else types
    resources = [{"type": kind, **abilities} for kind, abilities in said.items()]
    rest = {"mode": "server", "interaction": [{"code": code} for code in interactions], "resource": resources}
    return {"resourceType": "CapabilityStatement", "software": {"name": name}, "rest": [rest]}


BOTH = {"conditionalCreate": True, "updateCreate": True}

#: Statements, and the rows that they choose.
CHOSEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "all of it": (statement("transaction", "batch", **BOTH), "transaction", "conditional"),
    "HAPI 8.8, as measured": (
        statement("transaction", "history-system", name="HAPI FHIR Server", conditionalCreate=True),
        "transaction",
        "conditional",
    ),
    "a HAPI takes batches and does not say so": (
        statement(name="HAPI FHIR Server", conditionalCreate=True),
        "batch",
        "conditional",
    ),
    "no conditional create": (statement("transaction", "batch", updateCreate=True), "transaction", "update"),
    "it is denied": (statement("transaction", conditionalCreate=False, updateCreate=False), "transaction", "search"),
    "it is no boolean": (statement("transaction", conditionalCreate="true"), "transaction", "search"),
    "batches": (statement("batch", **BOTH), "batch", "conditional"),
    "nothing": (statement(), "single", "search"),
    "not for all types": (
        statement("transaction", types={"Observation": BOTH, "Device": {"updateCreate": True}}),
        "transaction",
        "update",
    ),
    "none of the types": (statement("transaction", types={"Patient": BOTH}), "transaction", "search"),
    "a type that it does not serve": (
        statement("transaction", types={"Observation": BOTH}),
        "transaction",
        "conditional",
    ),
}


@pytest.mark.parametrize(("said", "send", "create"), CHOSEN.values(), ids=CHOSEN)
def test_what_a_server_says_chooses_the_rows(said: dict[str, Any], send: str, create: str) -> None:
    able = abilities(said, TYPES)
    assert able
    chosen = strategy(able)
    assert (chosen.sending.name, chosen.creating.name) == (send, create)


UNREADABLE: list[Any] = [
    {},
    {"resourceType": "OperationOutcome"},
    {"resourceType": "CapabilityStatement"},
    {"resourceType": "CapabilityStatement", "rest": {"mode": "server"}},
    {"resourceType": "CapabilityStatement", "rest": [None, 7, {"mode": "client"}]},
    {"resourceType": "Bundle", "rest": [{"mode": "server"}]},
]


@pytest.mark.parametrize("said", UNREADABLE)
def test_what_says_nothing_of_a_server_is_no_statement(said: Any) -> None:
    assert abilities(said, TYPES) is None


@pytest.mark.parametrize(
    "rest",
    [
        {"interaction": 7, "resource": 7},
        {"interaction": [None, 7, {"code": []}, {}], "resource": [None, {"type": 7}, {"type": "Device"}]},
    ],
)
def test_a_strange_statement_says_that_the_server_can_nothing(rest: Any) -> None:
    said = {"resourceType": "CapabilityStatement", "software": [7], "rest": [{"mode": "server", **rest}]}
    assert abilities(said, TYPES) == Abilities(
        transactions=False, batches=False, conditional_create=False, update_create=False
    )


@pytest.mark.parametrize("send", [row.name for row in SENDING])
@pytest.mark.parametrize("create", [row.name for row in CREATING])
def test_a_setting_names_a_row_whatever_the_server_says(send: str, create: str) -> None:
    chosen = strategy(Abilities(), send=send, create=create)
    assert (chosen.sending.name, chosen.creating.name) == (send, create)


def test_the_settings_name_the_rows() -> None:
    hints = get_type_hints(UpstreamSettings)
    assert get_args(hints["send"]) == ("auto", *(row.name for row in SENDING))
    assert get_args(hints["create"]) == ("auto", *(row.name for row in CREATING))


@pytest.mark.parametrize(
    ("send", "entries", "group", "fits"),
    [
        ("transaction", 0, 500, True),
        ("transaction", 20, 20, True),
        ("transaction", 20, 21, False),
        ("transaction", 1, 1, True),
        ("batch", 0, 1, True),
        ("batch", 0, 2, False),
        ("single", 0, 2, False),
    ],
)
def test_what_fits_is_stored_whole(send: str, entries: int, group: int, fits: bool) -> None:
    assert strategy(Abilities(), send=send, entries=entries).fits(range(group)) is fits


# ---- taken apart


def planned(*entries: Any, settled: Any = None) -> Plan:
    taken = submitted(*entries, kind="batch", endpoint="base")
    return Planner(taken, 500, localize).plan(identified_entries(taken), settled or {})


def everything(made: Plan) -> list[Any]:
    return [group for wave in made.waves for group in wave]


def test_members_go_before_their_summary_and_that_before_the_report() -> None:
    made = planned(
        entry(report(urn(3)), urn(4)), entry(summary(urn(2)), urn(3)), entry(gmi(), urn(2)), entry(device(), urn(1))
    )
    assert split_groups(everything(made), made) == ([((2,), (3,)), ((1,),), ((0,),)], [])


def test_what_is_stored_by_then_holds_nothing_up() -> None:
    made = planned(entry(summary(urn(2), urn(1)), urn(3)), entry(gmi(), urn(2)), entry(reading(), urn(1)))
    assert split_groups([(0,)], made) == ([((0,),)], [])


def test_entries_that_a_repetition_makes_a_circle_of_are_left_out() -> None:
    """The first references the second, which references a repetition of the first."""
    circle = [
        entry(reading(0, derivedFrom=[{"reference": urn(2)}]), urn(1)),
        entry(reading(1, derivedFrom=[{"reference": urn(3)}]), urn(2)),
        entry(reading(0), urn(3)),
        entry(reading(2), urn(4)),
    ]
    made = planned(*circle)
    assert made.same_as == {2: 0}
    assert split_groups(everything(made), made) == ([((3,),)], [0, 1])


# ---- requests

IDENTITY = identified_entries(submitted(entry(reading(id="mine"), urn(1))))[0].identity
TOKEN = f"identifier=urn:ietf:rfc:3986|{IDENTITY}"

#: What is asked for an entry, by the row and whether the server is a HAPI; and the header fields of a request by itself.
REQUESTS = [
    ("conditional", False, {"method": "POST", "url": "Observation", "ifNoneExist": TOKEN}, {"If-None-Exist": TOKEN}),
    (
        "conditional",
        True,
        {"method": "POST", "url": "Observation", "ifNoneExist": f"Observation?{TOKEN}"},
        {"If-None-Exist": f"Observation?{TOKEN}"},
    ),
    (
        "update",
        False,
        {"method": "PUT", "url": f"Observation/{IDENTITY[9:]}", "ifNoneMatch": "*"},
        {"If-None-Match": "*"},
    ),
    ("search", True, {"method": "POST", "url": "Observation"}, {}),
]


@pytest.mark.parametrize(("create", "hapi", "request_", "fields"), REQUESTS)
def test_an_entry_is_asked_for_in_the_way_of_its_row(create: str, hapi: bool, request_: Any, fields: Any) -> None:
    (one,) = identified_entries(submitted(entry(reading(id="mine"), urn(1))))
    way = strategy(Abilities(hapi=hapi), create=create)
    asked, said, resource = single(one, {}, way)
    assert (asked, said) == (request_, fields)
    kept = decode(resource)
    assert kept["id"] == (IDENTITY[9:] if create == "update" else "mine")
    assert kept["identifier"] == [{"system": "urn:ietf:rfc:3986", "value": IDENTITY}]
    (sent,) = decode(bundle([one], {}, way))["entry"]
    assert sent == {"fullUrl": urn(1), "resource": kept, "request": request_}


@pytest.mark.parametrize("send", ["transaction", "batch"])
def test_a_bundle_is_of_the_type_of_its_row(send: str) -> None:
    assert decode(bundle([], {}, strategy(Abilities(), send=send))) == {
        "resourceType": "Bundle",
        "type": send,
        "entry": [],
    }


def test_fhirs_own_way_is_the_default() -> None:
    assert strategy(Abilities()) == Strategy()
