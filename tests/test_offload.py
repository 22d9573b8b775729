"""Long work beside the event loop pauses while requests stream, and ends when nobody waits for it."""

import pytest

from cgm_proxy import offload as offload_module
from cgm_proxy.observability import stream_stats
from cgm_proxy.observability.stream_stats import RECENT, StreamStats
from cgm_proxy.offload import PAUSE_SECONDS, WORK_SECONDS, StoppedError, Throttle


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
    items = throttle.over(range(10))
    assert [next(items), next(items)] == [0, 1]
    throttle.stop()
    with pytest.raises(StoppedError):
        next(items)
