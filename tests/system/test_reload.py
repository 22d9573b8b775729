"""SIGHUP replaces the rules of a real process while streams and submissions are under way: none is dropped, none mixes."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.client import Client
from support.servers import Running, proxy

from cgm_proxy.sandbox.simulation.submissions import patient, submission

#: More than are judged on the event loop, so that a reload falls into the judging.
READINGS = 300
RULE = """\
extends: cgm-sensor-reading-mass-per-volume
dialect: 1.0.0
rules:
  - {{id: generation, expression: {expression}, text: generation {number}, severity: warning}}
---
samples:
  - {{name: good, resource: {{resourceType: Observation}}, passes: [generation]}}
  - {{name: bad, of: good, set: {{status: final}}, fails: generation}}
"""


def write(directory: Path, number: int, expression: str = "status.empty()") -> None:
    """Replace the file as an editor does: at once."""
    (directory / ".new").write_text(RULE.format(number=number, expression=expression))
    (directory / ".new").rename(directory / "generation.yaml")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "rules"
    made.mkdir()
    write(made, 0)
    return made


@pytest.fixture
def running(sandbox: str, directory: Path, tmp_path: Path) -> Iterator[Running]:
    with proxy(sandbox, tmp_path, {"rules": directory, "limits.in_flight": 8}) as server:
        yield server


def reloads(running: Running, result: str) -> int:
    found = re.search(rf'^cgm_proxy_rule_reloads_total{{result="{result}"}} (\d+)', metrics(running), re.MULTILINE)
    return int(found[1]) if found else 0


def metrics(running: Running) -> str:
    return Client(running.ops).get("metrics").data.decode()


def reload(running: Running, result: str) -> None:
    before, deadline = reloads(running, result), time.monotonic() + 60
    os.kill(running.process.pid, signal.SIGHUP)
    while reloads(running, result) == before:
        assert time.monotonic() < deadline, running.log.read_text()[-2000:]
        time.sleep(0.02)


def logged(running: Running, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def generations(running: Running, sandbox: str, readings: int) -> set[str]:
    """Submit for a new patient, all of which must be stored; give the generations that the warnings name."""
    about = f"Patient/p{uuid4().hex[:12]}"
    assert Client(sandbox).put(about, patient(about.partition("/")[2])).status == 201
    bundle = submission("1.0.0", about, readings=readings, summary=False, pdf=False)
    answer = Client(running.url).submit("1.0.0", bundle)
    responses = [entry["response"] for entry in answer.body["entry"]]
    assert [response["status"][:3] for response in responses] == ["201"] * (readings + 1)
    told = [issue["diagnostics"] for response in responses[1:] for issue in response["outcome"]["issue"]]
    assert len(told) == readings
    return {text.rpartition(" ")[2] for text in told}


def test_rules_are_replaced_under_way_and_no_request_is_dropped_or_judged_by_two(
    running: Running, sandbox: str, directory: Path
) -> None:
    done = threading.Event()
    seen: list[set[str]] = []
    streamed: list[int] = []

    def submit() -> None:
        while not done.is_set():
            seen.append(generations(running, sandbox, READINGS))

    def stream() -> None:
        while not done.is_set():
            streamed.append(Client(running.url).get("metadata").status)

    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(work) for work in (submit, submit, stream)]
        try:
            for number in range(1, 5):
                write(directory, number)
                reload(running, "replaced")
                assert generations(running, sandbox, 2) == {str(number)}
        finally:
            done.set()
        for work in under_way:
            work.result()
    assert {len(each) for each in seen} == {1}
    assert set(streamed) == {200}
    assert len({name for each in seen for name in each}) > 1
    assert [line["rules"] for line in logged(running, "rules replaced")] == [
        logged(running, "listening")[0]["rules"]
    ] * 4


def test_a_faulty_file_is_refused_in_words_and_the_old_rules_stay(
    running: Running, sandbox: str, directory: Path
) -> None:
    write(directory, 1, "status.exist()")
    reload(running, "refused")
    assert generations(running, sandbox, 2) == {"0"}
    (line,) = logged(running, "rules refused, the old ones stay in force")
    told = "rule `generation`: `expression`: unknown function exist(); did you mean exists?"
    assert (line["level"], line["faults"]) == ("error", [f"{directory / 'generation.yaml'}:4: {told}"])
    write(directory, 2)
    reload(running, "replaced")
    assert generations(running, sandbox, 2) == {"2"}


def test_rules_that_are_gone_are_not_taken_for_none(running: Running, sandbox: str, directory: Path) -> None:
    (directory / "generation.yaml").unlink()
    reload(running, "refused")
    assert generations(running, sandbox, 2) == {"0"}
    (line,) = logged(running, "rules refused, the old ones stay in force")
    assert line["faults"] == [f"{directory}: holds no rules; name a directory that has files *.yaml"]


def test_several_signals_at_once_are_one_reload_or_two_and_the_last_state_counts(
    running: Running, sandbox: str, directory: Path
) -> None:
    for number in range(1, 20):
        write(directory, number)
        os.kill(running.process.pid, signal.SIGHUP)
    reload(running, "replaced")
    reload(running, "replaced")
    assert generations(running, sandbox, 2) == {"19"}
    assert reloads(running, "replaced") <= 5


def test_the_number_of_rules_is_a_gauge(running: Running) -> None:
    (line,) = logged(running, "listening")
    assert f"\ncgm_proxy_rules {line['rules']}.0" in metrics(running)
