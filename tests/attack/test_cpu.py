"""Submissions that are made to cost time or memory: the cost grows with their size alone, and others don't wait for them."""

import asyncio
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import pytest
from support import servers
from support.client import JSON
from support.places import RULES
from support.proxying import World, counted, entry_rules, proxying, statuses
from support.submissions import READING, localize

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission.model import parse_entry
from cgm_proxy.receiver import story
from cgm_proxy.rulekit.loading import rule_book
from cgm_proxy.sandbox.simulation.submissions import patient, standing_orders, submission

Json = dict[str, Any]
PATIENT = "Patient/cpu"
XHTML = "http://www.w3.org/1999/xhtml"
#: What each row grows by, and what its cost may grow by: linear growth is 4, quadratic growth is 16.
LARGER, MOST = 4, 9


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return rule_book(RULES)


def simulated(**more: Any) -> list[Json]:
    """Return the resources of a submission of the dialect 1.0.0."""
    options = {"readings": 300, "device": False, "summary": False, "pdf": False} | more
    return [entry["resource"] for entry in submission("1.0.0", PATIENT, **options)["entry"]]


(PLAIN,) = simulated(readings=1)


def reading(**more: Any) -> Json:
    return {**deepcopy(PLAIN), **more}


def contained(number: int, *, referenced: bool) -> Json:
    devices = [{"resourceType": "Device", "id": f"d{n}"} for n in range(number)]
    links = {"derivedFrom": [{"reference": f"#d{n}"} for n in range(number)]} if referenced else {}
    return reading(contained=devices, **links)


def codings(number: int) -> Json:
    system = "http://hl7.org/fhir/observation-status"
    return reading(method={"coding": [{"system": system, "code": f"c{n}"} for n in range(number)]})


def links(number: int) -> Json:
    pages = [{"relation": f"x{n}", "url": "http://x.example"} for n in range(number)]
    return reading(contained=[{"resourceType": "Bundle", "id": "b", "type": "searchset", "link": pages}])


def narrative(number: int) -> Json:
    div = f'<div xmlns="{XHTML}">' + '<p id="a">x <a href="#a">x</a></p>' * number + "</div>"
    return reading(text={"status": "generated", "div": div})


def without_codes(number: int) -> Json:
    """Return a reading whose components all break a rule of R4: each issue names the element."""
    return reading(component=[{"valueString": "x"} for _ in range(number)])


#: Resources whose size grows with a number, and a number at which quadratic cost would be much of the whole.
GROWING: dict[str, tuple[Callable[[int], Json], int]] = {
    "contained, referenced": (lambda n: contained(n, referenced=True), 300),
    "contained, not referenced": (lambda n: contained(n, referenced=False), 300),
    "components": (lambda n: reading(component=[{"code": {"text": "x"}, "valueString": "x"}] * n), 300),
    "components without a code": (without_codes, 1000),
    "codings that their system lacks": (codings, 1000),
    "claims of contained profiles": (lambda n: reading(meta={"profile": [f"#{i}" for i in range(n)]}), 1000),
    "claims of other versions": (lambda n: reading(meta={"profile": [f"{READING}|{i}" for i in range(n)]}), 500),
    "links of a contained Bundle": (links, 1000),
    "a narrative": (narrative, 1000),
    "extensions": (
        lambda n: reading(extension=[{"url": f"http://x.org/{i}", "valueString": "x"} for i in range(n)]),
        500,
    ),
    "identifiers": (lambda n: reading(identifier=[{"system": "http://x.org", "value": str(i)} for i in range(n)]), 500),
    "unknown members": (lambda n: reading(**{f"x{i}": 1 for i in range(n)}), 2000),
}


def seconds(book: RuleBook, resource: Json) -> float:
    """Return the processor time of an examination, which does not depend on what else the machine does."""
    times = []
    for _ in range(2):
        began = time.thread_time()
        book.examine(resource, [READING], dialect="1.0.0", encoded=b" " * 2**20)  # too large for the cache
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize("name", GROWING)
def test_the_cost_of_an_examination_grows_with_the_size_of_the_resource_alone(book: RuleBook, name: str) -> None:
    make, number = GROWING[name]
    seconds(book, make(2))  # parses the expressions
    small = seconds(book, make(number))
    assert seconds(book, make(LARGER * number)) < MOST * small + 0.05


def with_data(size: int, more: str = "") -> Json:
    (report,) = simulated(pdf=True, send_readings=False)
    attachment = report["presentedForm"][0]
    for name in ("size", "hash"):
        attachment.pop(name, None)
    attachment["data"] = b64encode(b"x" * (size * 3 // 4)).decode() + more
    return report


def quoted(size: int) -> str:
    r"""Return text whose JSON is `\"` again and again."""
    return '"' * (size // 2)


SIZE = 2 * 2**20
#: Resources with one long text, for patterns that could take memory for each letter in case that they must try again.
LONG: dict[str, Callable[[], Json]] = {
    "base64": lambda: with_data(SIZE),
    "base64 that is none": lambda: with_data(SIZE, more="\n"),
    "quotes": lambda: reading(note=[{"text": quoted(SIZE)}]),
    "quotes in a reference": lambda: reading(performer=[{"reference": quoted(SIZE)}]),
    "quotes in the subject": lambda: reading(subject={"reference": quoted(SIZE)}),
    "an OID": lambda: reading(implicitRules="urn:oid:1" + ".1" * (SIZE // 2)),
    "a search": lambda: reading(performer=[{"reference": "Practitioner?a=b" + "&a=b" * (SIZE // 4)}]),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_text_takes_a_few_times_its_own_memory(book: RuleBook, name: str) -> None:
    resource = LONG[name]()
    seconds(book, reading())
    tracemalloc.start()
    try:
        began = tracemalloc.get_traced_memory()[0]
        entry = parse_entry(0, {"resource": resource, "request": {}}, localize)
        book.examine(entry.resource, [READING], dialect="1.0.0", encoded=entry.encoded)
        most = tracemalloc.get_traced_memory()[1] - began
    finally:
        tracemalloc.stop()
    assert most < 12 * SIZE


def test_an_examination_can_be_stopped_within_an_entry_and_within_an_expression(book: RuleBook) -> None:
    class Stopped(BaseException):
        """Like the error that stops work in a thread."""

    (*members, summary) = simulated(summary=True, send_readings=False)
    by_reference = {f"urn:{n}": member for n, member in enumerate(members)}
    summary["hasMember"] = [{"reference": reference} for reference in list(by_reference) * 20]
    for resource, steps in ((contained(100, referenced=True), 100), (summary, 300)):
        calls = 0

        def between() -> None:
            nonlocal calls
            calls += 1
            if calls > steps:  # noqa: B023 -- called in this turn
                raise Stopped

        with pytest.raises(Stopped):
            book.examine(resource, [READING], by_reference.get, dialect="1.0.0", between=between)


# In front of a real store ------------------------------------------------------------------------------------------------


@contextmanager
def getting(url: str) -> Iterator[list[float]]:
    """Get `url` again and again during the context; the list has the seconds that each took."""
    times: list[float] = []
    stopped = threading.Event()

    def get() -> None:
        while not stopped.is_set():
            began = time.perf_counter()
            with urllib.request.urlopen(url, timeout=60) as response:
                response.read()
            times.append(time.perf_counter() - began)
            time.sleep(0.01)

    thread = threading.Thread(target=get)
    thread.start()
    try:
        yield times
    finally:
        stopped.set()
        thread.join()


def post(url: str, resource: Json) -> bytes:
    request = urllib.request.Request(url, encode(resource), {"Content-Type": JSON}, method="POST")
    with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=120) as response:
        return bytes(response.read())
    return b""


def in_a_batch(*resources: Json) -> Json:
    tagged = submission("argo", PATIENT, readings=1, device=False, summary=False, pdf=False)
    entries = [{"resource": each, "request": {"method": "POST", "url": each["resourceType"]}} for each in resources]
    return tagged | {"entry": entries}


def of_members(number: int) -> Json:
    """Return a submission of a summary that references its members again and again."""
    bundle = submission("argo", PATIENT, readings=300, send_readings=False, pdf=False, device=False)
    for entry in bundle["entry"]:
        if members := entry["resource"].get("hasMember"):
            entry["resource"]["hasMember"] = [members[n % len(members)] for n in range(number)]
    return bundle


#: Submissions that blocked the event loop for seconds.
ATTACKS: dict[str, Callable[[], Json]] = {
    "contained resources": lambda: in_a_batch(contained(3000, referenced=True)),
    "components": lambda: in_a_batch(reading(component=[{"code": {"text": "x"}, "valueString": "x"}] * 4000)),
    "members of a summary": lambda: of_members(400),
    "readings of different shapes": lambda: in_a_batch(*[reading(note=[{"text": f"{n}"}]) for n in range(250)]),
    "a document": lambda: in_a_batch(with_data(20 * 2**20)),
    "quotes": lambda: in_a_batch(reading(performer=[{"reference": quoted(20 * 2**20)}])),
}


@pytest.fixture(scope="module")
def proxy(sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Running]:
    settings = {"limits.elements": 100_000}
    with servers.proxy(sandbox, tmp_path_factory.mktemp("proxy"), settings) as running:
        put = urllib.request.Request(
            f"{sandbox}/{PATIENT}", encode(patient("cpu")), {"Content-Type": JSON}, method="PUT"
        )
        urllib.request.urlopen(put).close()
        post(running.url, in_a_batch(reading()))
        yield running


@pytest.mark.parametrize("name", ATTACKS)
def test_other_requests_go_on_beside_a_submission_that_is_made_to_take_long(proxy: servers.Running, name: str) -> None:
    bundle = ATTACKS[name]()
    with getting(f"{proxy.url}/{PATIENT}") as quiet:
        time.sleep(0.5)
    with getting(f"{proxy.url}/{PATIENT}") as beside:
        began = time.perf_counter()
        post(proxy.url, bundle)
        took = time.perf_counter() - began
    assert max(beside) < 0.4 * took + 10 * max(quiet)


# With a time limit -------------------------------------------------------------------------------------------------------


def heavy(world: World, number: int, about: str = "") -> Json:
    """Return a submission of readings that take a hundred times as long as plain ones, each in a way of its own."""
    bundle = submission("argo", about or world.about, readings=number, device=False, summary=False, pdf=False)
    for index, entry in enumerate(bundle["entry"]):
        entry["resource"] |= {
            "contained": [{"resourceType": "Device", "id": f"d{n}-{index}"} for n in range(200)],
            "derivedFrom": [{"reference": f"#d{n}-{index}"} for n in range(200)],
        }
    return bundle


async def test_what_could_not_be_judged_in_time_is_answered_503_and_can_be_sent_again() -> None:
    async with proxying(limits__seconds=1, upstream__read_timeout=1) as world:
        bundle = heavy(world, 400)
        plain = world.readings(5, dialect="argo")["entry"]
        bundle["entry"] = [*plain, *bundle["entry"][5:]]
        answer = await world.submit(bundle)
        assert set(statuses(answer)) <= {422, 503}
        assert statuses(answer)[-1] == 503
        assert entry_rules(answer, -1) == ["judging-timeout"]
        assert await world.count() == 0  # all of it was one part
        assert counted(await world.submit(world.readings(5, dialect="argo"))) == {201: 5}


async def test_what_was_judged_in_time_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "PART", 20)
    async with proxying(limits__seconds=2, upstream__read_timeout=2) as world:
        bundle = heavy(world, 600)
        bundle["entry"][:20] = world.readings(20)["entry"]
        answer = await world.submit(bundle)
        assert statuses(answer)[:20] == [201] * 20
        assert (statuses(answer)[-1], entry_rules(answer, -1)) == (503, ["judging-timeout"])
        assert await world.count() == 20


async def test_nothing_of_a_submission_that_may_yet_be_refused_is_stored_when_there_is_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(story, "PART", 20)
    async with proxying(limits__seconds=1, upstream__read_timeout=1) as world:
        await world.put(standing_orders("argo", world.about)[0])  # it wants a summary
        bundle = heavy(world, 400)
        for kind in ("batch", "transaction"):
            answer = await world.submit(bundle | {"type": kind})
            assert answer.status == 503
            assert answer.body["issue"][0]["details"]["coding"][0]["code"] == "judging-timeout"
        assert await world.count() == 0


async def test_one_reading_does_not_wait_for_the_long_submissions_of_others() -> None:
    async with proxying() as world:
        others = [f"Patient/other{number}" for number in range(3)]
        for reference in others:
            await world.put(patient(reference.rpartition("/")[2]))
        assert counted(await world.submit(world.readings(1))) == {201: 1}
        long = [asyncio.create_task(world.submit(heavy(world, 60, reference))) for reference in others]
        await asyncio.sleep(0.5)
        assert counted(await world.submit(world.readings(2))) == {200: 1, 201: 1}
        assert not any(task.done() for task in long)
        assert [answer.status for answer in await asyncio.gather(*long)] == [200] * 3
