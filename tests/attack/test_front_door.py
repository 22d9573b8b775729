"""The public port under attack: long paths, slow and many connections, clients that leave, and other people's authority."""

import time
from collections.abc import Callable

import pytest
from support.later import raw
from support.proxying import proxying

from cgm_proxy.core.submission.detection import MAX_PATH, spellings

# ---- paths

#: Paths that are costly to read, by their length in steps.
COSTLY_PATHS: dict[str, Callable[[int], str]] = {
    "dot segments": lambda steps: "/fhir" + "/a" * steps + "/.." * steps,
    "dot segments without names": lambda steps: "/fhir" + "/.." * steps,
    "escaped dot segments": lambda steps: "/fhir" + "/%61" * steps + "/%2e%2e" * steps,
    "dot segments in backslashes": lambda steps: "/fhir" + "\\a" * steps + "\\.." * steps,
    "escapes of escapes": lambda steps: "/fhir/" + "%25252561" * steps,
    "parameters": lambda steps: "/fhir" + "/;a" * steps,
    "semicolons": lambda steps: "/fhir/" + ";" * steps,
    "slashes": lambda steps: "/fhir" + "/" * steps,
    "question marks in escapes": lambda steps: "/fhir/" + "%3f" * steps,
}


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes, as the shortest of several times."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.parametrize("path", COSTLY_PATHS.values(), ids=COSTLY_PATHS)
def test_a_path_takes_time_in_proportion_to_its_length(
    path: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgm_proxy.core.submission.detection.MAX_SPELLED", 2**40, raising=False)
    short, long = seconds(lambda: spellings(path(1_000))), seconds(lambda: spellings(path(10_000)))
    assert long < 30 * short  # 10 if it is linear, 100 if it is quadratic


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", COSTLY_PATHS.values(), ids=COSTLY_PATHS)
async def test_a_long_path_is_refused_and_goes_nowhere(method: str, path: Callable[[int], str]) -> None:
    async with proxying() as world:
        world.fake.seen.clear()
        answer = await raw(world.proxy.port, method.encode(), path(5_000))
        assert answer.startswith(b"HTTP/1.1 414 "), answer[:200]
        assert b"path-too-long" in answer
        assert world.fake.seen == []


@pytest.mark.parametrize("length", [MAX_PATH, MAX_PATH + 1])
async def test_the_query_does_not_count_as_path(length: int) -> None:
    async with proxying() as world:
        path = "/fhir/Patient/".ljust(length, "x")
        status = 414 if length > MAX_PATH else 404
        assert (await raw(world.proxy.port, b"GET", f"{path}?_id={'x' * 5_000}")).startswith(b"HTTP/1.1 %d " % status)
