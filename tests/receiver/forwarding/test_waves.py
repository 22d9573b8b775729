"""What becomes of a submission while the upstream fails, refuses, races or lies; what the store holds decides."""

import asyncio
import math
import threading
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from support.fake_upstream import (
    FakeResponse,
    PassOn,
    after,
    before,
    changed,
    closed,
    gets,
    half,
    holding,
    reset,
    searches,
    silent,
    transactions,
)
from support.proxying import counted, entry_rules, locations, proxying, statuses

from cgm_proxy import offload
from cgm_proxy.core.rest.reactions import RACES, RACES_OF_A_HALF
from cgm_proxy.core.submission import reader
from cgm_proxy.core.submission.judge import IncrementalJudge
from cgm_proxy.observability import stream_stats
from cgm_proxy.receiver.forwarding import retry_budget

REFUSAL = {
    "resourceType": "OperationOutcome",
    "issue": [{"severity": "error", "code": "x", "diagnostics": "no such day"}],
}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once: what is tested is that it is done, not how long it takes."""
    monkeypatch.setattr(retry_budget, "LONGEST_PAUSE", 0.01)


def strip_locations(answer):
    for entry in answer["entry"]:
        del entry["response"]["location"]
    return answer


def respond(**fields):
    """Change each entry's response."""

    def change(answer):
        for entry in answer["entry"]:
            entry["response"] |= fields
        return answer

    return change


#: What happens to the first transaction, and what each of three new readings is answered in the end.
ONCE = {
    "a lost race": (before(409), 201),
    "a lost race after which it is stored": (after(409), 200),
    "too many requests": (before(429, Retry_After="1"), 201),
    "too many requests until a date": (before(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"), 201),
    "a Retry-After that is no number": (before(503, Retry_After="\xb2"), 201),
    "500 before it is stored": (before(500), 201),
    "500 after it is stored": (after(500), 200),
    "502 before": (before(502, b"<html>Bad Gateway</html>"), 201),
    "502 after": (after(502, b"<html>Bad Gateway</html>"), 200),
    "503 before": (before(503, Retry_After="0"), 201),
    "503 after": (after(503), 200),
    "504 after": (after(504), 200),
    "a gateway's own status": (after(520, b"web server is returning an unknown error"), 200),
    "408": (before(408), 201),
    "a reset before": (reset(committed=False), 201),
    "a reset after": (reset(committed=True), 200),
    "a connection closed before": (closed(committed=False), 201),
    "a connection closed after": (closed(committed=True), 200),
    "half an answer": (half(), 200),
    "half an answer without a length": (half(framed=False), 200),
    "an answer that is no JSON": (changed(lambda _: b"<html>OK</html>"), 200),
    "an answer that is cut short": (changed(lambda _: b'{"resourceType":"Bundle","entry":['), 200),
    "an answer that is an array": (changed(lambda _: b"[]"), 200),
    "an answer nested beyond reading": (changed(lambda _: b"[" * 100_000), 200),
    "an answer without entries": (changed(lambda _: {"resourceType": "Bundle"}), 200),
    "an answer with entries that are no list": (changed(lambda _: {"entry": {"response": {}}}), 200),
    "an entry too few": (changed(lambda b: b | {"entry": b["entry"][1:]}), 200),
    "an entry too many": (changed(lambda b: b | {"entry": b["entry"] + b["entry"][:1]}), 200),
    "entries that are no objects": (changed(lambda b: b | {"entry": [7, None, "x"]}), 200),
    "responses that are no objects": (changed(lambda b: b | {"entry": [{"response": "201 Created"}] * 3}), 200),
    "no locations": (changed(strip_locations), 200),
    "locations that are no strings": (changed(respond(location=7)), 200),
    "locations that are none": (changed(respond(location="somewhere")), 200),
    "locations with line ends": (changed(respond(location="Observation/1\r\nX: y/_history/1")), 200),
    "statuses of a refusal": (changed(respond(status="412 Precondition Failed")), 200),
    "statuses that are numbers": (changed(respond(status=None)), 200),
}


@pytest.mark.parametrize(("act", "status"), ONCE.values(), ids=ONCE)
async def test_a_transaction_that_fails_once_is_sent_again_and_stored_once(act, status: int) -> None:
    async with proxying() as world:
        world.fake.script(transactions, act)
        answer = await world.submit(world.readings(3))
        assert statuses(answer) == [status] * 3
        stored = await world.stored()
        assert len(stored) == 3
        assert {place.split("/_history")[0] for place in locations(answer)} == {
            f"Observation/{r['id']}" for r in stored
        }
        first, second = world.fake.received(transactions)
        assert first.body == second.body


@pytest.mark.parametrize("wait", ["600", "9" * 400, "Fri, 31 Dec 2100 23:59:59 GMT"])
async def test_a_wait_that_outlasts_the_submission_ends_it_at_once(wait: str) -> None:
    async with proxying(limits__seconds=60, forward__chunk=2) as world:
        world.fake.script(transactions, before(429, Retry_After=wait))
        answer = await world.submit(world.readings(8))
        assert set(statuses(answer)) <= {503, 201}
        assert len(world.fake.received(transactions)) <= 2  # those that were under way by then
        again = await world.submit(world.readings(8))
        assert set(statuses(again)) <= {200, 201}
        assert await world.count() == 8


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("dated", [False, True])
async def test_a_wait_is_heeded_by_all_that_goes_upstream(status: int, dated: bool) -> None:
    now = datetime.now(UTC)
    wait = format_datetime(now + timedelta(seconds=3), usegmt=True) if dated else "2"
    async with proxying(forward__chunk=2) as world:
        world.fake.script(transactions, before(status, Retry_After=wait))
        assert set(statuses(await world.submit(world.readings(8)))) == {201}
        assert (datetime.now(UTC) - now).total_seconds() > 1.9
        assert len(world.fake.received(transactions)) == 5


@pytest.mark.parametrize("act", [before(409), after(409)])
async def test_a_race_that_is_lost_again_and_again_is_won_in_the_end(act) -> None:
    async with proxying(upstream__retries=0) as world:
        world.fake.script(transactions, *[act] * 5)
        assert len(set(statuses(await world.submit(world.readings(3))))) == 1
        assert await world.count() == 3


async def test_a_race_that_never_ends_leaves_nothing_but_503() -> None:
    async with proxying() as world:
        world.fake.always(transactions, before(409))
        assert statuses(await world.submit(world.readings(3))) == [503] * 3
        halves = 4  # of three readings: one and two, then each of these
        assert len(world.fake.received(transactions)) == RACES + 1 + halves * (RACES_OF_A_HALF + 1)


#: Faults that outlast the budget: whether the store had committed, and why nobody could know.
OUTLASTING = {
    "503 before": (before(503), 0),
    "503 after": (after(503), 3),
    "a reset before": (reset(committed=False), 0),
    "a reset after": (reset(committed=True), 3),
    "silence before": (silent(committed=False), 0),
    "silence after": (silent(committed=True), 3),
    "answers that are no JSON": (changed(lambda _: b"OK"), 3),
    "answers without locations": (changed(strip_locations), 3),
}


@pytest.mark.parametrize(("act", "held"), OUTLASTING.values(), ids=OUTLASTING)
async def test_a_budget_used_up_answers_503_and_sending_again_stores_each_once(act, held: int) -> None:
    async with proxying(upstream__retries=1, upstream__read_timeout=0.5) as world:
        world.fake.script(transactions, act, act)
        answer = await world.submit(world.readings(3))
        assert statuses(answer) == [503] * 3
        assert entry_rules(answer)[0] == "fate-unknown"
        text = answer.body["entry"][0]["response"]["outcome"]["issue"][0]["diagnostics"]
        assert "send it again" in text
        assert "safe" in text
        assert await world.count() == held
        again = await world.submit(world.readings(3))
        assert statuses(again) == [200 if held else 201] * 3
        assert await world.count() == 3
        assert statuses(await world.submit(world.readings(3))) == [200] * 3


async def test_one_chunk_that_stays_unknown_does_not_stop_the_others() -> None:
    async with proxying(upstream__retries=0, forward__chunk=2) as world:
        world.fake.script(transactions, before(503))
        answer = await world.submit(world.readings(6))
        assert counted(answer) == {503: 2, 201: 4}
        assert await world.count() == 4
        assert counted(await world.submit(world.readings(6))) == {201: 2, 200: 4}
        assert await world.count() == 6


async def test_a_submission_that_takes_too_long_answers_what_is_known_so_far() -> None:
    async with proxying(limits__seconds=1, upstream__read_timeout=1, forward__chunk=2, forward__concurrency=1) as world:
        stuck = [False, True, True]
        world.fake.always(lambda asked: transactions(asked) and bool(stuck) and stuck.pop(0), silent(committed=True))
        answer = await world.submit(world.readings(6))
        assert statuses(answer) == [201, 201, 503, 503, 503, 503]
        stuck.clear()
        assert counted(await world.submit(world.readings(6))) == {200: 4, 201: 2}
        assert await world.count() == 6


async def test_the_first_question_of_what_server_it_is_may_fail() -> None:
    async with proxying() as world:
        world.fake.script(gets("metadata"), reset(committed=False), reset(committed=False), before(503, b"starting"))
        assert statuses(await world.submit(world.readings(2))) == [201, 201]
        assert statuses(await world.submit(world.readings(3))) == [200, 200, 201]
        assert statuses(await world.submit(world.readings(4))) == [200, 200, 200, 201]


@pytest.mark.parametrize("answer", [b"no JSON", b'{"software":7}', b'{"software":{"name":["HAPI"]}}', b"[]"])
async def test_a_capability_statement_that_is_none_is_no_fault_of_a_submission(answer: bytes) -> None:
    async with proxying() as world:
        world.fake.always(gets("metadata"), before(200, answer))
        assert statuses(await world.submit(world.readings(2))) == [201, 201]


@pytest.mark.parametrize("name", ["HAPI FHIR Server", "Firely Server"])
async def test_conditions_name_their_type_where_the_upstream_is_a_hapi(name: str) -> None:
    async with proxying() as world:
        world.fake.always(gets("metadata"), changed(lambda statement: statement | {"software": {"name": name}}))
        assert statuses(await world.submit(world.readings(1))) == [201]
        (sent,) = world.fake.received(transactions)
        condition = sent.json["entry"][0]["request"]["ifNoneExist"]
        start = "Observation?identifier=" if "HAPI" in name else "identifier="
        assert condition.startswith(f"{start}urn:ietf:rfc:3986|urn:uuid:")


async def test_the_whole_dialogue_of_a_first_submission() -> None:
    async with proxying(forward__concurrency=1, forward__chunk=2) as world:
        assert statuses(await world.submit(world.readings(3))) == [201] * 3
        assert world.fake.dialogue == [
            f"GET {world.about}",
            "POST ServiceRequest/_search",
            "GET metadata",
            "POST transaction",
            "POST transaction",
        ]


@pytest.mark.parametrize("status", [400, 412, 413, 422, 404, 430, 444])
@pytest.mark.parametrize("guilty", [0, 3, 6])
async def test_a_chunk_that_is_refused_is_narrowed_to_the_guilty_entry(status: int, guilty: int) -> None:
    async with proxying() as world:
        bundle = world.readings(7)
        wrong = bundle["entry"][guilty]["resource"]["effectiveDateTime"]
        world.fake.always(holding(wrong), before(status, REFUSAL))
        answer = await world.submit(bundle)
        expected = status if status not in {430, 444} else 400
        assert statuses(answer) == [expected if index == guilty else 201 for index in range(7)]
        assert entry_rules(answer, guilty) == ["upstream-refused"]
        issue = answer.body["entry"][guilty]["response"]["outcome"]["issue"][0]
        assert "no such day" in issue["diagnostics"]
        assert issue["expression"] == [f"Bundle.entry[{guilty}]"]
        assert wrong not in [resource["effectiveDateTime"] for resource in await world.stored()]
        assert await world.count() == 6


@pytest.mark.parametrize("guilty", [(0,), (6,), (2, 5)])
@pytest.mark.parametrize(("status", "why"), [(500, "upstream-failed"), (409, "upstream-refused")])
async def test_an_entry_at_which_the_upstream_fails_does_not_keep_its_chunk_out(
    guilty: tuple[int, ...], status: int, why: str
) -> None:
    """HAPI answers 409 also of what its store can't hold."""
    async with proxying(upstream__retries=1) as world:
        bundle = world.readings(7)
        for index in guilty:
            wrong = bundle["entry"][index]["resource"]["effectiveDateTime"]
            world.fake.always(holding(wrong), before(status, REFUSAL))
        answer = await world.submit(bundle)
        assert statuses(answer) == [503 if index in guilty else 201 for index in range(7)]
        assert entry_rules(answer, guilty[0]) == ["fate-unknown", why]
        assert await world.count() == 7 - len(guilty)


@pytest.mark.parametrize("retries", [0, 4])
@pytest.mark.parametrize("act", [before(500, REFUSAL), before(503), reset(committed=False)])
async def test_an_upstream_that_fails_at_everything_is_soon_left_alone(act, retries: int) -> None:
    async with proxying(upstream__retries=retries, forward__chunk=10) as world:
        world.fake.always(transactions, act)
        assert counted(await world.submit(world.readings(400))) == {503: 400}
        assert len(world.fake.received(transactions)) <= retry_budget.FAILING_CHUNKS * (retries + 1) + 2


async def test_several_guilty_entries_in_several_chunks_are_each_found() -> None:
    async with proxying(forward__chunk=4) as world:
        bundle = world.readings(12)
        guilty = (1, 2, 7, 11)
        for index in guilty:
            world.fake.always(holding(bundle["entry"][index]["resource"]["effectiveDateTime"]), before(422, REFUSAL))
        answer = await world.submit(bundle)
        assert statuses(answer) == [422 if index in guilty else 201 for index in range(12)]
        assert await world.count() == 8


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", {"issue": 7}, {"issue": [None, {"diagnostics": 7}]}])
async def test_a_refusal_without_words_is_told_as_such(content) -> None:
    async with proxying() as world:
        world.fake.always(transactions, before(422, content))
        answer = await world.submit(world.readings(1))
        assert statuses(answer) == [422]
        assert "it gave no reason" in answer.body["entry"][0]["response"]["outcome"]["issue"][0]["diagnostics"]


async def test_a_summary_is_refused_whole_with_its_members_and_report_and_the_readings_are_stored() -> None:
    async with proxying() as world:
        bundle = world.readings(3, summary=True, pdf=True)
        kinds = [e["resource"]["meta"]["profile"][0].rpartition("/")[2] for e in bundle["entry"]]
        world.fake.always(holding("days-of-wear"), before(422, REFUSAL))
        answer = await world.submit(bundle)
        grouped = ["sensor-reading" not in kind for kind in kinds]
        assert sum(grouped) > 3
        assert statuses(answer) == [422 if one else 201 for one in grouped]
        assert await world.count() == 3
        assert await world.count("DiagnosticReport") == 0


async def test_what_leans_on_a_refused_device_is_a_failed_dependency() -> None:
    async with proxying() as world:
        bundle = world.readings(3, device=True)
        world.fake.always(holding('"resourceType":"Device"'), before(422, REFUSAL))
        answer = await world.submit(bundle)
        assert statuses(answer) == [422, 424, 424, 424]
        assert entry_rules(answer, 1) == ["reference-not-stored"]
        assert await world.count() == 0


async def test_what_leans_on_a_device_of_unknown_fate_may_be_sent_again_with_it() -> None:
    async with proxying(upstream__retries=0) as world:
        bundle = world.readings(3, device=True)
        world.fake.script(holding('"resourceType":"Device"'), after(503))
        answer = await world.submit(bundle)
        assert statuses(answer) == [503, 424, 424, 424]
        assert statuses(await world.submit(bundle)) == [200, 201, 201, 201]
        assert await world.count() == 3
        device = (await world.stored())[0]["device"]["reference"]
        assert (await world.ask_store("GET", device)).status == 200


@pytest.mark.parametrize("status", [401, 403, 405, 415, 501])
async def test_a_refusal_of_everything_is_not_narrowed(status: int) -> None:
    async with proxying(forward__chunk=4) as world:
        world.fake.script(transactions, before(status, REFUSAL))
        answer = await world.submit(world.readings(8))
        assert statuses(answer) == [status] * 4 + [201] * 4
        assert await world.count() == 4
        assert len(world.fake.received(transactions)) == 2


async def test_a_redirection_is_not_followed_with_a_submission() -> None:
    async with proxying() as world:
        world.fake.script(transactions, before(307, Location="http://127.0.0.1:1/elsewhere"))
        answer = await world.submit(world.readings(4))
        assert statuses(answer) == [502] * 4
        assert len(world.fake.received(transactions)) == 1
        assert statuses(await world.submit(world.readings(4))) == [201] * 4


async def test_several_stored_matches_of_an_identity_are_a_412_of_that_entry() -> None:
    async with proxying() as world:
        bundle = world.readings(3)
        await world.submit(bundle)
        (twin,) = [
            r
            for r in await world.stored()
            if r["effectiveDateTime"] == bundle["entry"][1]["resource"]["effectiveDateTime"]
        ]
        await world.ask_store("POST", "Observation", {k: v for k, v in twin.items() if k not in {"id", "meta"}})
        await world.request("DELETE", "Observation/none-such")  # the proxy forgets what it knew
        answer = await world.submit(bundle)
        assert statuses(answer) == [200, 412, 200]
        assert await world.count() == 4


async def test_two_proxies_that_race_store_each_reading_once() -> None:
    async with proxying() as one, proxying(upstream__url=one.fake.url) as two:
        two.about = one.about
        both = await asyncio.gather(*(world.submit(one.readings(40)) for world in (one, two)))
        assert await one.count() == 40
        assert locations(both[0]) == locations(both[1])


@pytest.mark.parametrize("act", [before(400, REFUSAL), before(401), before(503), reset(committed=False)])
async def test_an_atomic_submission_that_the_upstream_does_not_take_stores_nothing(act) -> None:
    async with proxying(upstream__retries=0) as world:
        world.fake.script(transactions, act)
        bundle = world.readings(3, device=True) | {"type": "transaction"}
        answer = await world.submit(bundle)
        assert answer.status in {400, 401, 503}
        assert answer.rules
        assert await world.count() == 0
        assert await world.count("Device") == 0
        again = await world.submit(bundle)
        assert again.body["type"] == "transaction-response"
        assert statuses(again) == [201] * 4


async def test_an_atomic_submission_goes_upstream_in_one_transaction() -> None:
    async with proxying(forward__chunk=2) as world:
        bundle = world.readings(5, device=True, summary=True, pdf=True) | {"type": "transaction"}
        answer = await world.submit(bundle)
        assert set(statuses(answer)) == {201}
        (sent,) = world.fake.received(transactions)
        assert len(sent.json["entry"]) == len(bundle["entry"])
        assert set(statuses(await world.submit(bundle))) == {200}
        assert len(world.fake.received(transactions)) == 1


async def test_an_atomic_submission_committed_without_an_answer_is_stored_once() -> None:
    async with proxying() as world:
        world.fake.script(transactions, reset(committed=True))
        answer = await world.submit(world.readings(5) | {"type": "transaction"})
        assert statuses(answer) == [200] * 5
        assert await world.count() == 5


async def test_a_large_submission_with_faults_all_over_is_stored_once() -> None:
    async with proxying(forward__chunk=20) as world:
        world.fake.script(
            transactions, before(409), after(500), reset(committed=True), before(503), half(), closed(committed=False)
        )
        answer = await world.submit(world.readings(200))
        assert set(statuses(answer)) == {200, 201}
        assert await world.count() == 200
        assert set(statuses(await world.submit(world.readings(200)))) == {200}


async def test_the_look_up_of_a_resent_submission_is_one_probe_and_a_few_searches() -> None:
    async with proxying(cache__known_seconds=0) as world:
        await world.submit(world.readings(300))
        world.fake.seen.clear()
        assert set(statuses(await world.submit(world.readings(300)))) == {200}
        assert world.fake.received(transactions) == []
        assert len(world.fake.received(searches("Observation", "identifier"))) == 3


@pytest.mark.parametrize("streaming", [False, True])
async def test_while_other_requests_stream_through_one_transaction_is_under_way(
    streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_stats, "RECENT", 5)  # a GET may take long on a busy machine
    now, most = 0, 0

    async def slow(_request: Any, pass_on: PassOn) -> FakeResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        given = await pass_on()
        now -= 1
        return given

    async with proxying(forward__chunk=10) as world:

        async def stream() -> None:
            while True:
                await world.request("GET", world.about)

        streams = asyncio.create_task(stream() if streaming else asyncio.sleep(0))
        await asyncio.sleep(0.05)
        world.fake.always(transactions, slow)
        assert counted(await world.submit(world.readings(100))) == {201: 100}
        streams.cancel()
    assert (most == 1) == streaming


async def test_what_is_large_is_read_beside_the_event_loop_and_everything_is_judged_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, set[bool]] = {"judge": set(), "read": set()}

    def noting(name: str, owner: Any, method: str) -> None:
        plain = getattr(owner, method)

        def noted(*arguments: Any) -> Any:
            seen[name].add(threading.current_thread() is threading.main_thread())
            return plain(*arguments)

        monkeypatch.setattr(owner, method, noted)

    noting("judge", IncrementalJudge, "judge")
    noting("read", reader, "read_document")
    async with proxying() as world:
        assert counted(await world.submit(world.readings(600))) == {201: 600}
        assert seen == {"judge": {False}, "read": {False}}
        assert counted(await world.submit(world.readings(2))) == {200: 2}
        assert seen == {"judge": {False}, "read": {False, True}}


@pytest.mark.parametrize("streaming", [True, False])
async def test_what_is_large_gives_way_to_what_streams_where_it_is_read_and_where_it_is_judged(
    streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    by: set[str] = set()

    def slept(_: float) -> None:
        assert threading.current_thread() is not threading.main_thread(), "the event loop must not sleep"
        frames = {frame.name for frame in traceback.extract_stack()}
        by.update(frames & {"read_document", "judge_part"})

    monkeypatch.setattr(offload, "sleep", slept)
    monkeypatch.setattr(offload, "WORK_SECONDS", 0)
    monkeypatch.setattr(stream_stats, "RECENT", math.inf if streaming else 0)
    async with proxying() as world:
        await world.request("GET", world.about)
        assert counted(await world.submit(world.readings(600))) == {201: 600}
        assert by == ({"read_document", "judge_part"} if streaming else set())
        by.clear()
        assert counted(await world.submit(world.readings(20))) == {200: 20}
        assert by == ({"judge_part"} if streaming else set())
