"""The commands as a user runs them: output, exit status, faults in words."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.r4 import FHIR_XML

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.sandbox.simulation.submissions import faulty_submission, submission

COMMAND = str(Path(sys.executable).parent / "cgm-proxy")


def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([COMMAND, *arguments], input=given, capture_output=True, timeout=300, check=False)


def verdicts(done: subprocess.CompletedProcess[bytes]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_demo_shows_the_main_job_from_orders_to_metrics() -> None:
    done = run("demo")
    told = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "4,032 readings, a summary with its 10 members, a PDF report and the device" in told
    assert "4,045 x 201 Created" in told
    assert "4,045 x 200 OK" in told
    assert "4,043 before, 4,043 after" in told
    for rule in (
        "cgm-sensor-reading-mass/value-unit",
        "cgm-summary/hasMember-gmi",
        "subject-other",
        "order-unsolicited",
    ):
        assert rule in told
    assert 'cgm_proxy_submissions_total{dialect="argo",outcome="stored"} 1.0' in told


@pytest.mark.parametrize("dialect", ["argo", "0.1.0", "1.0.0-ballot", "1.0.0"])
@pytest.mark.parametrize("write", [encode, FHIR_XML.to_xml], ids=["json", "xml"])
def test_check_passes_a_good_submission_of_each_dialect(dialect, write, tmp_path: Path) -> None:
    file = tmp_path / "submission"
    bundle = submission(dialect, "Patient/1", readings=3)
    file.write_bytes(write(bundle))
    done = run("check", "--output", "ndjson", str(file))
    assert done.returncode == 0
    assert [v["verdict"] for v in verdicts(done)] == ["pass"] * len(bundle["entry"])
    assert [v["id"] for v in verdicts(done)] == [entry["fullUrl"] for entry in bundle["entry"]]


def test_check_gives_the_verdicts_of_an_online_submission_without_orders() -> None:
    done = run("check", "--output", "ndjson", "-", given=encode(faulty_submission("argo", "Patient/1", "Patient/2")))
    failed = [[error["rule"] for error in v["errors"]] for v in verdicts(done) if v["verdict"] == "fail"]
    assert done.returncode == 1
    assert failed == [["cgm-sensor-reading-mass/value-unit"], ["cgm-summary/hasMember-gmi"], ["subject-other"]]


def test_check_takes_lines_of_resources_bundles_and_asked_ones() -> None:
    bundle = submission("1.0.0", "Patient/1", readings=1, summary=False, pdf=False, device=False)
    reading = bundle["entry"][0]["resource"]
    profile = reading["meta"]["profile"][0]
    bad = {**reading, "status": "done"}
    lines = [
        encode(reading),
        encode(bad),
        encode(bundle),
        encode({"id": "a", "profile": profile, "resource": reading}),
        encode({"id": "b", "profile": profile, "resource": bad}),
        encode({"id": "c", "profile": "http://x.org/none", "resource": reading}),
        b"{no json",
    ]
    done = run("check", "--output", "ndjson", "-", given=b"\n".join(lines))
    assert done.returncode == 1
    assert [v["verdict"] for v in verdicts(done)] == ["pass", "fail", "pass", "pass", "fail", "fail", "fail"]
    assert [v["id"] for v in verdicts(done)][3:6] == ["a", "b", "c"]
    assert verdicts(done)[4]["errors"][0].keys() == {"rule", "path", "message"}
    assert verdicts(done)[4]["errors"][0]["path"] == "Observation.status"


def test_check_writes_text_that_a_person_reads() -> None:
    bundle = submission("argo", "Patient/1", readings=1, summary=False, pdf=False, device=False)
    bundle["entry"][0]["resource"]["valueQuantity"]["unit"] = "mg/dL"
    told = run("check", "-", given=encode(bundle)).stdout.decode()
    assert told.startswith("FAIL urn:uuid:")
    assert 'valueQuantity.unit is "mg/dL"' in told


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("check", "/no/such/file"), 2, "can't read /no/such/file"),
        (("serve", "--settings", "/no/such/file"), 2, "/no/such/file"),
        (("rules", "list", "none-such"), 1, ""),
        (("rules", "lint", "/no/such/rules"), 2, "/no/such/rules is no directory"),
        (("rules", "test", "/no/such/rules"), 2, "/no/such/rules is no directory"),
        ((), 2, "COMMAND"),
    ],
)
def test_a_mistake_is_told_in_words_and_by_the_exit_status(arguments, status: int, told: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert told in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        (
            "listen.port",
            "{taken}",
            "can't listen at 127.0.0.1:{taken}: Address already in use; free it, or set another port",
        ),
        (
            "listen.ops_port",
            "{taken}",
            "can't listen at 127.0.0.1:{taken}: Address already in use; free it, or set another",
        ),
        (
            "listen.host",
            "192.0.2.1",
            "can't listen at 192.0.2.1:0: Cannot assign requested address; set an address of this",
        ),
        ("listen.ops_host", "x.invalid", "can't listen at x.invalid:0: "),
    ],
)
def test_where_nobody_can_listen_is_told_in_one_line_that_names_the_setting(
    setting: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        given = {"listen.host": "127.0.0.1", "listen.ops_host": "127.0.0.1", "listen.port": "0", "listen.ops_port": "0"}
        given |= {"upstream.url": "http://127.0.0.1:1/fhir", "jobs.path": str(tmp_path / "jobs")}
        for name, text in {**given, setting: value.format(taken=taken)}.items():
            monkeypatch.setenv(f"CGM_PROXY_{name.upper().replace('.', '_')}", text)
        done = run("serve")
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"cgm-proxy: {setting}: {told.format(taken=taken)}")
    assert done.stderr.count(b"\n") == 1


def test_rules_are_listed_for_a_reader() -> None:
    told = run("rules", "list", "cgm-sensor-reading-mass").stdout.decode()
    assert "valueQuantity.unit" in told or "value[x].unit" in told
    assert "mg/dl" in told
