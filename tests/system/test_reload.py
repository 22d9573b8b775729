"""SIGHUP replaces the rules of a running process. No request is dropped, and no submission is judged by two sets of rules."""

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

#: More readings than are judged on the event loop, so that rules are replaced while a submission is judged.
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
    """Replace the file atomically, as editors do."""
    (directory / ".new").write_text(RULE.format(number=number, expression=expression))
    (directory / ".new").rename(directory / "generation.yaml")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "rules"
    path.mkdir()
    write(path, 0)
    return path


@pytest.fixture
def running(sandbox: str, directory: Path, tmp_path: Path) -> Iterator[Running]:
    with proxy(sandbox, tmp_path, {"rules": directory, "limits.in_flight": 8}) as server:
        yield server


def reloads(running: Running, result: str) -> int:
    match = re.search(rf'^cgm_proxy_rule_reloads_total{{result="{result}"}} (\d+)', metrics(running), re.MULTILINE)
    return int(match[1]) if match else 0


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
    """Submit readings of a new patient, check that all are stored, and return the generations in the warnings."""
    about = f"Patient/p{uuid4().hex[:12]}"
    assert Client(sandbox).put(about, patient(about.partition("/")[2])).status == 201
    bundle = submission("1.0.0", about, readings=readings, summary=False, pdf=False)
    submitted = Client(running.url).submit("1.0.0", bundle)
    responses = [entry["response"] for entry in submitted.body["entry"]]
    assert [response["status"][:3] for response in responses] == ["201"] * (readings + 1)
    warnings = [issue["diagnostics"] for response in responses[1:] for issue in response["outcome"]["issue"]]
    assert len(warnings) == readings
    return {text.rpartition(" ")[2] for text in warnings}


def test_rules_are_replaced_while_requests_are_in_flight(running: Running, sandbox: str, directory: Path) -> None:
    done = threading.Event()
    submissions: list[set[str]] = []
    statuses: list[int] = []

    def submit() -> None:
        while not done.is_set():
            submissions.append(generations(running, sandbox, READINGS))

    def stream() -> None:
        while not done.is_set():
            statuses.append(Client(running.url).get("metadata").status)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(function) for function in (submit, submit, stream)]
        try:
            for number in range(1, 5):
                write(directory, number)
                reload(running, "replaced")
                assert generations(running, sandbox, 2) == {str(number)}
        finally:
            done.set()
        for future in futures:
            future.result()
    assert {len(names) for names in submissions} == {1}
    assert set(statuses) == {200}
    assert len({name for names in submissions for name in names}) > 1
    assert [line["rules"] for line in logged(running, "rules replaced")] == [
        logged(running, "listening")[0]["rules"]
    ] * 4


def test_a_faulty_file_is_refused_with_its_line_and_the_old_rules_stay_in_force(
    running: Running, sandbox: str, directory: Path
) -> None:
    write(directory, 1, "status.exist()")
    reload(running, "refused")
    assert generations(running, sandbox, 2) == {"0"}
    (line,) = logged(running, "rules refused, the old ones stay in force")
    fault = "rule `generation`: `expression`: unknown function exist(); did you mean exists?"
    assert (line["level"], line["faults"]) == ("error", [f"{directory / 'generation.yaml'}:4: {fault}"])
    write(directory, 2)
    reload(running, "replaced")
    assert generations(running, sandbox, 2) == {"2"}


def test_a_directory_without_rules_is_refused(running: Running, sandbox: str, directory: Path) -> None:
    (directory / "generation.yaml").unlink()
    reload(running, "refused")
    assert generations(running, sandbox, 2) == {"0"}
    (line,) = logged(running, "rules refused, the old ones stay in force")
    assert line["faults"] == [f"{directory}: has no rules; name a directory that has files *.yaml"]


def test_many_signals_at_once_lead_to_few_reloads_and_the_last_state_of_the_files(
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
