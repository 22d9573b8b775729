"""When the upstream's CapabilityStatement is read, and what goes on without it."""

import logging
from typing import Any

import pytest
from support.fake_upstream import FakeResponse, PassOn, batches, before, changed, gets, reset, silent, transactions
from support.proxying import World, proxying, statuses

from cgm_proxy.upstream import negotiation

metadata = gets("metadata")


def able(statement: Any, **said: bool) -> Any:
    """Make a statement say so of all resources."""
    for resource in statement["rest"][0]["resource"]:
        resource |= said
    return statement


def only(statement: Any, *codes: str) -> Any:
    """Make a statement name these interactions of the whole system."""
    statement["rest"][0]["interaction"] = [{"code": code} for code in codes]
    return statement


UPDATE = changed(lambda statement: able(statement, conditionalCreate=False, updateCreate=True))
BATCH = changed(lambda statement: only(statement, "batch"))


async def asked_in_transactions(world: World, number: int) -> set[str]:
    """Submit so many readings, and give the methods that were asked for in transactions."""
    world.fake.seen.clear()
    assert set(statuses(await world.submit(world.readings(number)))) <= {200, 201}
    assert await world.count() == number
    return {entry["request"]["method"] for sent in world.fake.received(transactions) for entry in sent.json["entry"]}


@pytest.mark.parametrize(
    "act", [reset(committed=False), before(503, b"starting"), before(401), before(200, b"<html>"), before(200, {})]
)
async def test_without_a_statement_it_is_fhirs_own_way_and_the_next_submission_asks_again(
    act, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cgm_proxy"):
        async with proxying() as world:
            world.fake.always(metadata, act)
            assert await asked_in_transactions(world, 2) == {"POST"}
            world.fake.scenes.clear()
            world.fake.always(metadata, UPDATE)
            assert await asked_in_transactions(world, 3) == {"PUT"}
    told = [record.fields for record in caplog.records if record.message == "upstream strategy"]
    assert [(one["create"], one["statement"]) for one in told] == [("conditional", "unreadable"), ("update", "read")]
    assert [record.levelname for record in caplog.records if record.message == "upstream strategy"] == [
        "WARNING",
        "INFO",
    ]


async def test_a_statement_that_does_not_come_holds_a_submission_up_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(negotiation, "TIMEOUT", 0.2)
    async with proxying() as world:
        world.fake.script(metadata, silent(committed=False))
        assert await asked_in_transactions(world, 2) == {"POST"}


async def test_a_statement_is_believed_for_a_while_and_its_successor_then() -> None:
    async with proxying() as world:
        world.fake.script(metadata, UPDATE)
        assert await asked_in_transactions(world, 2) == {"PUT"}
        assert await asked_in_transactions(world, 3) == {"PUT"}
        assert world.fake.received(metadata) == []


async def test_a_server_that_has_learnt_is_believed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "VALID_SECONDS", 0)
    async with proxying() as world:
        world.fake.script(metadata, UPDATE)
        assert await asked_in_transactions(world, 2) == {"PUT"}
        assert await asked_in_transactions(world, 3) == {"POST"}


async def test_what_was_read_is_believed_on_while_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that ignores conditions would be trusted with them, because its statement was away for a moment."""
    monkeypatch.setattr(negotiation, "VALID_SECONDS", 0)
    async with proxying() as world:
        world.fake.script(metadata, UPDATE)
        assert await asked_in_transactions(world, 2) == {"PUT"}
        world.fake.always(metadata, before(500))
        assert await asked_in_transactions(world, 3) == {"PUT"}


async def test_a_server_that_does_not_do_what_it_says_is_asked_again() -> None:
    async with proxying() as world:
        world.fake.script(transactions, before(501))
        assert statuses(await world.submit(world.readings(2))) == [501, 501]
        world.fake.always(metadata, BATCH)
        assert statuses(await world.submit(world.readings(2))) == [201, 201]
        assert len(world.fake.received(batches)) == 1


async def test_a_server_that_knows_no_elements_is_asked_for_the_whole_statement() -> None:
    async def bare(request: Any, pass_on: PassOn) -> FakeResponse | None:
        if "_elements" not in request.query_string:
            return await UPDATE(request, pass_on)
        return await before(200, {"resourceType": "CapabilityStatement", "status": "active"})(request, pass_on)

    async with proxying() as world:
        world.fake.always(metadata, bare)
        assert await asked_in_transactions(world, 2) == {"PUT"}
        assert [asked.query != "" for asked in world.fake.received(metadata)] == [True, False]


@pytest.mark.parametrize(("setting", "methods"), [("conditional", {"POST"}), ("update", {"PUT"}), ("search", {"POST"})])
async def test_a_setting_wins_over_the_statement(setting: str, methods: set[str]) -> None:
    async with proxying(upstream__create=setting) as world:
        world.fake.always(metadata, UPDATE)
        assert await asked_in_transactions(world, 2) == methods
        conditions = {
            "ifNoneExist" in e["request"] for sent in world.fake.received(transactions) for e in sent.json["entry"]
        }
        assert conditions == {setting == "conditional"}
