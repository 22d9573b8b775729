"""How entries are looked for, sent, sent again and narrowed, in each way of sending them; what the store holds decides."""

import asyncio
from typing import Any

import pytest
from support.fake_upstream import (
    FakeResponse,
    PassOn,
    ReceivedRequest,
    after,
    batches,
    before,
    changed,
    closed,
    holding,
    reset,
    searches,
    silent,
    transactions,
)
from support.proxying import OTHER, World, counted, entry_rules, locations, proxying, statuses

from cgm_proxy.cache import backends
from cgm_proxy.receiver.forwarding import chunks, retry_budget

UPDATE = {"upstream__create": "update"}
SEARCH = {"upstream__create": "search"}
SINGLE = {"upstream__send": "single"}
BATCH = {"upstream__send": "batch"}

REFUSAL = {
    "resourceType": "OperationOutcome",
    "issue": [{"severity": "error", "code": "x", "diagnostics": "no such day"}],
}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_budget, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(chunks, "SETTLING", 0.1)


def puts(asked: ReceivedRequest) -> bool:
    return asked.method == "PUT"


def posts(asked: ReceivedRequest) -> bool:
    return str(asked) == "POST Observation"


def writes(asked: ReceivedRequest) -> bool:
    return asked.method == "PUT" or str(asked) in {"POST ", "POST Observation"}


async def versions(world: World) -> set[str]:
    return {resource["meta"]["versionId"] for resource in await world.stored()}


# ---- conditions that fail


@pytest.mark.parametrize(("act", "status"), [(before(412), 201), (after(412), 200)], ids=["before", "after"])
@pytest.mark.parametrize("send", ["transaction", "batch", "single"])
async def test_a_condition_that_fails_is_resolved_by_a_look_up(act, status: int, send: str) -> None:
    async with proxying(upstream__send=send) as world:
        world.fake.script(writes, act)
        answer = await world.submit(world.readings(3))
        assert statuses(answer)[0] == status
        assert set(statuses(answer)) <= {200, 201}
        assert await world.count() == 3


async def test_a_condition_that_fails_for_no_reason_that_shows_is_the_entrys_refusal() -> None:
    async with proxying() as world:
        bundle = world.readings(4)
        world.fake.always(holding(bundle["entry"][2]["resource"]["effectiveDateTime"]), before(412, REFUSAL))
        answer = await world.submit(bundle)
        assert statuses(answer) == [201, 201, 412, 201]
        assert entry_rules(answer, 2) == ["upstream-refused"]


# ---- requests one by one


def without_location(request: Any, pass_on: PassOn) -> Any:
    async def act() -> FakeResponse:
        given = await pass_on()
        for name in ("Location", "Content-Location"):
            given.headers.pop(name, None)
        return FakeResponse(200, given.headers, b"")

    del request
    return act()


async def test_an_entry_that_is_stored_nobody_says_where_is_looked_up() -> None:
    async with proxying(**SINGLE) as world:
        world.fake.script(posts, without_location)
        answer = await world.submit(world.readings(3))
        assert statuses(answer) == [200, 201, 201]
        assert len(world.fake.received(searches("Observation", "identifier"))) == 1
        assert await world.count() == 3


async def test_requests_one_by_one_carry_their_condition_and_what_the_submitter_prefers() -> None:
    async with proxying(**SINGLE) as world:
        answer = await world.submit(world.readings(2), Prefer="return=representation")
        assert statuses(answer) == [201, 201]
        assert [entry["resource"]["id"] for entry in answer.body["entry"]] == [
            place.split("/")[1] for place in locations(answer)
        ]
        for sent in world.fake.received(posts):
            assert sent.headers["If-None-Exist"].startswith("identifier=urn:ietf:rfc:3986|urn:uuid:")
            assert sent.headers["Prefer"] == "return=representation"
        again = await world.submit(world.readings(2))
        assert locations(again) == locations(answer)


async def test_a_failing_server_is_not_sent_the_rest_one_by_one() -> None:
    async with proxying(**SINGLE, upstream__retries=0) as world:
        world.fake.always(posts, before(503))
        assert counted(await world.submit(world.readings(100))) == {503: 100}
        assert len(world.fake.received(posts)) <= retry_budget.FAILING_CHUNKS + 2


# ---- update as create


@pytest.mark.parametrize("send", ["transaction", "batch", "single"])
@pytest.mark.parametrize(
    "act", [reset(committed=True), closed(committed=True), after(502), after(409), after(412), after(500, REFUSAL)]
)
async def test_an_update_whose_answer_is_lost_is_looked_up_and_not_made_again(act, send: str) -> None:
    async with proxying(**UPDATE, upstream__send=send) as world:
        world.fake.script(writes, act)
        answer = await world.submit(world.readings(3))
        assert set(statuses(answer)) <= {200, 201}
        assert await world.count() == 3
        assert await versions(world) == {"1"}


async def test_an_update_asks_that_nothing_be_there() -> None:
    async with proxying(**UPDATE, **SINGLE) as world:
        assert statuses(await world.submit(world.readings(2))) == [201, 201]
        assert [sent.headers["If-None-Match"] for sent in world.fake.received(puts)] == ["*", "*"]


async def test_what_was_amended_since_is_not_overwritten_although_it_lost_its_identity() -> None:
    async with proxying(**UPDATE) as world:
        answer = await world.submit(world.readings(2))
        (first, _) = await world.stored()
        amended = {k: v for k, v in first.items() if k != "identifier"} | {"note": [{"text": "sensor was loose"}]}
        await world.put(amended)
        await world.request("DELETE", "Observation/none-such")  # the proxy forgets what it knew
        again = await world.submit(world.readings(2))
        assert statuses(again) == [200, 200]
        assert {place.split("/_history")[0] for place in locations(again)} == {
            place.split("/_history")[0] for place in locations(answer)
        }
        assert [each.get("note") for each in await world.stored() if each["id"] == first["id"]] == [amended["note"]]


async def test_what_somebody_put_in_an_entrys_place_is_neither_overwritten_nor_taken_for_it() -> None:
    async with proxying(**UPDATE) as world:
        await world.submit(world.readings(1))
        (mine,) = await world.stored()
        await world.put(mine | {"subject": {"reference": OTHER}})
        await world.request("DELETE", "Observation/none-such")
        answer = await world.submit(world.readings(2))
        assert statuses(answer) == [409, 201]
        assert entry_rules(answer) == ["identity-taken"]
        assert await world.count(about=OTHER) == 1


async def test_two_proxies_that_race_by_update_store_each_reading_once() -> None:
    async with proxying(**UPDATE) as one, proxying(**UPDATE, upstream__url=one.fake.url) as two:
        two.about = one.about
        both = await asyncio.gather(*(world.submit(one.readings(40)) for world in (one, two)))
        assert await one.count() == 40
        places = [[place.split("/_history")[0] for place in locations(answer)] for answer in both]
        assert places[0] == places[1]


@pytest.mark.parametrize("first", ["conditional", "update", "search"])
@pytest.mark.parametrize("then", ["conditional", "update", "search"])
async def test_what_was_created_in_one_way_is_found_in_another(first: str, then: str) -> None:
    async with proxying(upstream__create=first) as one:
        answer = await one.submit(one.readings(3))
        async with proxying(upstream__create=then, upstream__url=one.fake.url) as two:
            two.about = one.about
            assert statuses(again := await two.submit(one.readings(4))) == [200, 200, 200, 201]
            assert locations(again)[:3] == locations(answer)
        assert await one.count() == 4


# ---- search, then create


@pytest.mark.parametrize("send", ["transaction", "batch", "single"])
@pytest.mark.parametrize(
    "act", [reset(committed=True), closed(committed=True), after(502), after(504), silent(committed=True)]
)
async def test_a_create_whose_answer_is_lost_is_found_and_not_sent_again(act, send: str) -> None:
    async with proxying(**SEARCH, upstream__send=send, upstream__read_timeout=0.5) as world:
        world.fake.script(writes, act)
        answer = await world.submit(world.readings(3))
        assert statuses(answer)[0] == 200
        assert set(statuses(answer)) <= {200, 201}
        assert await world.count() == 3


@pytest.mark.parametrize("act", [reset(committed=False), silent(committed=False), before(502)])
async def test_a_create_that_nobody_knows_of_is_not_sent_again_in_the_same_submission(act) -> None:
    async with proxying(**SEARCH, upstream__read_timeout=0.5) as world:
        world.fake.script(transactions, act)
        answer = await world.submit(world.readings(3))
        assert statuses(answer) == [503] * 3
        assert entry_rules(answer)[0] == "fate-unknown"
        assert len(world.fake.received(transactions)) == 1
        assert statuses(await world.submit(world.readings(3))) == [201] * 3
        assert await world.count() == 3


async def test_a_create_that_commits_after_its_connection_was_cut_is_found_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "SETTLING", 0.3)
    late: list[asyncio.Task[FakeResponse]] = []

    async def cut(request: Any, pass_on: PassOn) -> None:
        async def commit() -> FakeResponse:
            await asyncio.sleep(0.8)
            return await pass_on()

        late.append(asyncio.create_task(commit()))
        request.transport.abort()

    async with proxying(**SEARCH) as world:
        world.fake.script(transactions, cut)
        assert statuses(await world.submit(world.readings(3))) == [200] * 3
        await asyncio.gather(*late)
        assert await world.count() == 3


@pytest.mark.parametrize("act", [before(429), before(503, Retry_After="0"), before(409), before(500, REFUSAL)])
async def test_a_create_that_the_server_says_it_has_not_done_is_sent_again(act) -> None:
    async with proxying(**SEARCH) as world:
        world.fake.script(transactions, act)
        assert statuses(await world.submit(world.readings(3))) == [201] * 3
        assert await world.count() == 3


async def test_all_identities_are_looked_up_before_anything_is_sent_not_a_few() -> None:
    async with proxying(**SEARCH) as world:
        entries = world.readings(90)["entry"]
        await world.submit(world.readings(1) | {"entry": entries[40:41]})
        await world.request("DELETE", "Observation/none-such")
        answer = await world.submit(world.readings(1) | {"entry": entries})
        assert counted(answer) == {201: 89, 200: 1}
        assert await world.count() == 90


async def test_without_the_patients_turn_nothing_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(**SEARCH) as world:
        assert statuses(await world.submit(world.readings(2))) == [201, 201]
        monkeypatch.setattr(backends.PatientLock, "held", False)
        answer = await world.submit(world.readings(4))
        assert statuses(answer) == [200, 200, 503, 503]
        assert entry_rules(answer, 3) == ["turn-lost"]
        assert await world.count() == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_who_may_not_search_can_create_nothing_where_that_is_all_that_guards_it(status: int) -> None:
    async with proxying(**SEARCH) as world:
        world.fake.always(searches("Observation"), before(status, WWW_Authenticate="Bearer"))
        answer = await world.submit(world.readings(3))
        assert statuses(answer) == [status] * 3
        assert world.fake.received(transactions) == []


@pytest.mark.parametrize("act", [before(503), before(429, Retry_After="0"), before(500), before(200, b"<html>")])
async def test_a_look_up_that_fails_is_made_again_and_nothing_sent_before(act) -> None:
    async with proxying(**SEARCH) as world:
        world.fake.script(searches("Observation"), act)
        assert statuses(await world.submit(world.readings(3))) == [201] * 3
        assert [str(asked) for asked in world.fake.seen].index("POST ") > 3
        assert await world.count() == 3


async def test_what_is_stored_twice_is_neither_created_nor_told_as_one_of_both() -> None:
    async with proxying(**SEARCH) as world:
        await world.submit(world.readings(1))
        (twin,) = await world.stored()
        await world.ask_store("POST", "Observation", {k: v for k, v in twin.items() if k not in {"id", "meta"}})
        await world.request("DELETE", "Observation/none-such")
        answer = await world.submit(world.readings(2))
        assert statuses(answer) == [412, 201]
        assert entry_rules(answer) == ["identity-ambiguous"]


# ---- refusals


async def test_an_entry_that_the_refusal_names_is_found_at_once() -> None:
    def named(request: Any, pass_on: PassOn) -> Any:
        async def act() -> FakeResponse:
            sent = world.fake.seen[-1].json["entry"]
            place = next(n for n, e in enumerate(sent) if e["resource"]["effectiveDateTime"] == wrong)
            issue = {"severity": "error", "code": "invalid", "expression": [f"Bundle.entry[{place}].resource"]}
            given = await before(422, {"resourceType": "OperationOutcome", "issue": [issue]})(request, pass_on)
            assert given
            return given

        return act()

    async with proxying(forward__chunk=100) as world:
        bundle = world.readings(60)
        wrong = bundle["entry"][33]["resource"]["effectiveDateTime"]
        world.fake.always(holding(wrong), named)
        answer = await world.submit(bundle)
        assert counted(answer) == {201: 59, 422: 1}
        assert statuses(answer)[33] == 422
        assert len(world.fake.received(transactions)) == 3


@pytest.mark.parametrize("status", [413, 400])
async def test_how_many_entries_are_too_many_is_learnt(status: int) -> None:
    too_many = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "too-costly"}]}
    async with proxying(forward__concurrency=1, forward__chunk=100) as world:
        world.fake.always(lambda asked: transactions(asked) and len(asked.json["entry"]) > 20, before(status, too_many))
        assert counted(await world.submit(world.readings(200))) == {201: 200}
        sizes = [len(sent.json["entry"]) for sent in world.fake.received(transactions)]
        assert [size for size in sizes if size > 20] == [100, 50, 25, 25, 50, 25, 25]
        world.fake.seen.clear()
        assert counted(await world.submit(world.readings(400))) == {200: 200, 201: 200}
        assert max(len(sent.json["entry"]) for sent in world.fake.received(transactions)) <= 20


async def test_a_group_that_turns_out_too_large_is_stored_members_first() -> None:
    async with proxying() as world:
        world.fake.always(lambda asked: transactions(asked) and len(asked.json["entry"]) > 4, before(413))
        bundle = world.readings(6, summary=True, pdf=True, device=True)
        assert set(statuses(await world.submit(bundle))) == {201}
        assert set(statuses(await world.submit(bundle))) == {200}
        (report,) = await world.stored("DiagnosticReport")
        for result in report["result"]:
            assert (await world.ask_store("GET", result["reference"])).status == 200


async def test_an_atomic_submission_that_turns_out_too_large_is_refused_whole() -> None:
    async with proxying() as world:
        world.fake.always(transactions, before(413, REFUSAL))
        answer = await world.submit(world.readings(6) | {"type": "transaction"})
        assert (answer.status, answer.rules[0]) == (413, "upstream-refused")


@pytest.mark.parametrize("settings", [BATCH, SINGLE])
async def test_an_atomic_submission_with_one_entry_left_to_create_is_atomic_anywhere(settings: dict[str, Any]) -> None:
    async with proxying(**settings) as world:
        await world.submit(world.readings(2))
        answer = await world.submit(world.readings(3) | {"type": "transaction"})
        assert statuses(answer) == [200, 200, 201]


async def test_entries_of_a_batch_are_sent_again_alone_where_they_alone_failed() -> None:
    def partly(answer: Any) -> Any:
        answer["entry"][1] = {"response": {"status": "409 Conflict"}}
        answer["entry"][3] = {"response": {"status": "503"}}
        return answer

    async with proxying(**BATCH) as world:
        world.fake.script(batches, changed(partly))
        assert statuses(await world.submit(world.readings(5))) == [201, 200, 201, 200, 201]
        assert [len(sent.json["entry"]) for sent in world.fake.received(batches)] == [5, 2]
        assert await world.count() == 5


async def test_a_batch_that_is_refused_whole_is_narrowed() -> None:
    """HAPI refuses a batch whole where it can't parse one entry."""
    async with proxying(**BATCH) as world:
        bundle = world.readings(7)
        wrong = bundle["entry"][4]["resource"]["effectiveDateTime"]
        world.fake.always(lambda asked: batches(asked) and wrong in asked.body.decode(), before(400, REFUSAL))
        assert statuses(await world.submit(bundle)) == [400 if n == 4 else 201 for n in range(7)]


async def test_the_entries_of_a_refused_transaction_are_sent_as_a_batch_which_tells_the_guilty_ones() -> None:
    async with proxying() as world:
        bundle = world.readings(60)
        for n in (3, 33, 53):
            bundle["entry"][n]["resource"]["performer"] = [{"reference": f"Practitioner/none{n}"}]
        world.fake.always(transactions, before(422, REFUSAL))
        assert statuses(await world.submit(bundle)) == [400 if n in {3, 33, 53} else 201 for n in range(60)]
        assert len(world.fake.received(transactions)) == len(world.fake.received(batches)) == 1


@pytest.mark.parametrize("status", [400, 404, 405, 501])
async def test_where_a_batch_is_refused_whole_transactions_tell_the_guilty_entries(status: int) -> None:
    async with proxying() as world:
        bundle = world.readings(16)
        wrong = bundle["entry"][4]["resource"]["effectiveDateTime"]
        world.fake.always(batches, before(status))
        world.fake.always(holding(wrong), before(422, REFUSAL))
        assert statuses(await world.submit(bundle)) == [422 if n == 4 else 201 for n in range(16)]
        assert len(world.fake.received(batches)) == 1


@pytest.mark.parametrize("settings", [{"upstream__send": "transaction"}, {"upstream__send": "single"}])
async def test_where_a_setting_says_how_entries_are_sent_none_is_sent_in_a_batch(settings: dict[str, Any]) -> None:
    async with proxying(**settings) as world:
        bundle = world.readings(8)
        bundle["entry"][5]["resource"]["performer"] = [{"reference": "Practitioner/none"}]
        assert statuses(await world.submit(bundle)) == [400 if n == 5 else 201 for n in range(8)]
        assert world.fake.received(batches) == []


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_who_is_not_allowed_to_write_learns_how_to_get_allowed(kind: str) -> None:
    async with proxying() as world:
        world.fake.script(transactions, before(401, REFUSAL, WWW_Authenticate='Bearer realm="fhir"'))
        answer = await world.submit(world.readings(2) | {"type": kind})
        if kind == "batch":
            assert statuses(answer) == [401, 401]
        else:
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="fhir"')


async def test_who_is_not_allowed_to_write_a_single_reading_learns_it_as_well() -> None:
    async with proxying(detection="content") as world:
        world.fake.script(transactions, before(401, REFUSAL, WWW_Authenticate="Bearer"))
        answer = await world.request("POST", "Observation", world.readings(1)["entry"][0]["resource"])
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
