"""Long work beside the event loop pauses while requests stream, and ends when nobody waits for it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from time import sleep

import pytest

from cgm_proxy import offload as offload_module
from cgm_proxy.observability import stream_stats
from cgm_proxy.observability.stream_stats import RECENT, StreamStats
from cgm_proxy.offload import PAUSE_SECONDS, WORK_SECONDS, StoppedError, Throttle, Turns


def test_long_work_lets_streamed_requests_pass_each_time_that_it_has_taken_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, slept = [0.0], list[float]()
    monkeypatch.setattr(stream_stats, "monotonic", lambda: now[0])
    monkeypatch.setattr(offload_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(offload_module, "sleep", slept.append)
    traffic = StreamStats()

    def work(seconds: float) -> None:
        throttle = Throttle(traffic)
        for _ in range(100):
            now[0] += seconds / 100
            throttle()

    work(10 * WORK_SECONDS)
    assert slept == []  # nobody streams
    traffic.count_response(200, 0.001)
    work(WORK_SECONDS / 2)
    assert slept == []
    work(10 * WORK_SECONDS)
    assert set(slept) == {PAUSE_SECONDS}
    assert len(slept) == pytest.approx(10, abs=1)
    now[0] += RECENT
    slept.clear()
    work(10 * WORK_SECONDS)
    assert slept == []


def test_long_work_ends_when_nobody_waits_for_it_any_more() -> None:
    throttle = Throttle(StreamStats())
    throttle()
    throttle.stop()
    with pytest.raises(StoppedError):
        throttle()


class Workers:
    """Threads that work until they are told to stop; `progress` counts the steps of each owner."""

    def __init__(self, at_once: int) -> None:
        self.turns = Turns(at_once)
        self.progress: Counter[str] = Counter()
        self.working = self.most = 0
        self._all: list[tuple[Throttle, Thread]] = []

    def start(self, owner: str, number: int = 1) -> list[Throttle]:
        throttles = [Throttle(StreamStats(), self.turns, owner) for _ in range(number)]
        for throttle in throttles:
            thread = Thread(target=self._work, args=(owner, throttle))
            self._all.append((throttle, thread))
            thread.start()
        return throttles

    def _work(self, owner: str, throttle: Throttle) -> None:
        with suppress(StoppedError), throttle.turn():
            while True:
                self.working += 1
                self.most = max(self.most, self.working)
                sleep(0.001)
                self.progress[owner] += 1
                self.working -= 1
                throttle()

    def stop(self) -> None:
        for throttle, _ in self._all:
            throttle.stop()
        for _, thread in self._all:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers(1)
    yield found
    found.stop()


def test_whoever_has_much_work_shares_the_time_with_one_who_has_little(workers: Workers) -> None:
    workers.start("many", 8)
    sleep(0.1)
    workers.progress.clear()
    workers.start("one")
    sleep(1)
    assert workers.most == 1
    assert workers.progress["one"] > workers.progress["many"] / 3


def test_work_that_waits_for_its_turn_can_be_stopped(workers: Workers) -> None:
    workers.start("other")
    (waiting,) = workers.start("waiting")
    sleep(0.05)
    waiting.stop()
    sleep(0.05)
    steps = workers.progress["waiting"]
    sleep(0.1)
    assert workers.progress["waiting"] == steps
    assert workers.progress["other"] > 0


def test_the_turn_of_work_that_fails_goes_to_the_next(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError), Throttle(StreamStats(), workers.turns).turn():
        raise ZeroDivisionError
    workers.start("next")
    sleep(0.05)
    assert workers.progress["next"] > 0
