"""The commands as a user runs them: output, exit status, messages, and what each one imports."""

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


def verdicts(result: subprocess.CompletedProcess[bytes]) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_demo_shows_the_main_job_from_orders_to_metrics() -> None:
    result = run("demo")
    output = result.stdout.decode()
    assert (result.returncode, result.stderr) == (0, b"")
    assert "4,032 readings, a summary with its 10 members, a PDF report and the device" in output
    assert "4,045 x 201 Created" in output
    assert "4,045 x 200 OK" in output
    assert "4,043 before, 4,043 after" in output
    for rule in (
        "cgm-sensor-reading-mass/value-unit",
        "cgm-summary/hasMember-gmi",
        "subject-other",
        "order-unsolicited",
    ):
        assert rule in output
    assert 'cgm_proxy_submissions_total{dialect="argo",outcome="stored"} 1.0' in output


@pytest.mark.parametrize("dialect", ["argo", "0.1.0", "1.0.0-ballot", "1.0.0"])
@pytest.mark.parametrize("write", [encode, FHIR_XML.to_xml], ids=["json", "xml"])
def test_check_passes_a_good_submission_of_each_dialect(dialect, write, tmp_path: Path) -> None:
    file = tmp_path / "submission"
    bundle = submission(dialect, "Patient/1", readings=3)
    file.write_bytes(write(bundle))
    result = run("check", "--output", "ndjson", str(file))
    assert result.returncode == 0
    assert [v["verdict"] for v in verdicts(result)] == ["pass"] * len(bundle["entry"])
    assert [v["id"] for v in verdicts(result)] == [entry["fullUrl"] for entry in bundle["entry"]]


def test_check_has_the_verdicts_of_an_online_submission_without_orders() -> None:
    result = run("check", "--output", "ndjson", "-", given=encode(faulty_submission("argo", "Patient/1", "Patient/2")))
    failed = [[error["rule"] for error in v["errors"]] for v in verdicts(result) if v["verdict"] == "fail"]
    assert result.returncode == 1
    assert failed == [["cgm-sensor-reading-mass/value-unit"], ["cgm-summary/hasMember-gmi"], ["subject-other"]]


def test_check_judges_lines_of_resources_bundles_and_cases() -> None:
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
    result = run("check", "--output", "ndjson", "-", given=b"\n".join(lines))
    assert result.returncode == 1
    assert [v["verdict"] for v in verdicts(result)] == ["pass", "fail", "pass", "pass", "fail", "fail", "fail"]
    assert [v["id"] for v in verdicts(result)][3:6] == ["a", "b", "c"]
    assert verdicts(result)[4]["errors"][0].keys() == {"rule", "path", "message"}
    assert verdicts(result)[4]["errors"][0]["path"] == "Observation.status"


def test_check_prints_text_for_people_to_read() -> None:
    bundle = submission("argo", "Patient/1", readings=1, summary=False, pdf=False, device=False)
    bundle["entry"][0]["resource"]["valueQuantity"]["unit"] = "mg/dL"
    output = run("check", "-", given=encode(bundle)).stdout.decode()
    assert output.startswith("FAIL urn:uuid:")
    assert 'valueQuantity.unit is "mg/dL"' in output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("check", "/no/such/file"), 2, "can't read /no/such/file: No such file or directory"),
        (("check", "--dialect", "1.0.0", "/no/such/file"), 2, "can't read /no/such/file: No such file or directory"),
        (("check", "--dialect", "2.0", "x"), 2, "invalid choice: '2.0' (choose from 'argo', '0.1.0', '1.0.0-ballot'"),
        (("serve", "--settings", "/no/such/file"), 2, "/no/such/file"),
        (("rules", "list", "none-such"), 1, ""),
        (("rules", "lint", "/no/such/rules"), 2, "/no/such/rules is no directory"),
        (("rules", "test", "/no/such/rules"), 2, "/no/such/rules is no directory"),
        ((), 2, "COMMAND"),
    ],
)
def test_a_mistake_has_a_message_and_an_exit_status(arguments, status: int, message: str) -> None:
    result = run(*arguments)
    assert result.returncode == status
    assert message in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
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
def test_an_address_that_cannot_be_used_is_reported_in_one_line_that_names_the_setting(
    setting: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        given = {"listen.host": "127.0.0.1", "listen.ops_host": "127.0.0.1", "listen.port": "0", "listen.ops_port": "0"}
        given |= {"upstream.url": "http://127.0.0.1:1/fhir", "jobs.path": str(tmp_path / "jobs")}
        for name, text in {**given, setting: value.format(taken=taken)}.items():
            monkeypatch.setenv(f"CGM_PROXY_{name.upper().replace('.', '_')}", text)
        result = run("serve")
    assert result.returncode == 2
    assert result.stderr.decode().startswith(f"cgm-proxy: {setting}: {message.format(taken=taken)}")
    assert result.stderr.count(b"\n") == 1


def test_the_rules_of_a_profile_are_listed() -> None:
    output = run("rules", "list", "cgm-sensor-reading-mass").stdout.decode()
    assert "valueQuantity.unit" in output or "value[x].unit" in output
    assert "mg/dl" in output


#: Packages that only a running proxy or the sandbox needs.
SERVER = {"aiohttp", "fhir", "prometheus_client", "pydantic", "redis", "uvloop"}

#: A program that prints the modules that a statement imports; what the statement itself prints goes to stderr.
IMPORTS = """
import contextlib, sys
before = set(sys.modules)
with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
    {statement}
print(*set(sys.modules) - before, sep="\\n")
"""


def imports(statement: str) -> set[str]:
    """Return the modules that a new interpreter imports for a statement."""
    command = [sys.executable, "-c", IMPORTS.format(statement=statement)]
    return set(subprocess.run(command, capture_output=True, timeout=60, check=True, text=True).stdout.split())


def packages(modules: set[str]) -> set[str]:
    """Return the packages outside of the standard library among modules."""
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"cgm_proxy"}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["rules", "--help"], ["serve", "--help"]])
def test_help_and_version_import_argparse_alone(arguments: list[str]) -> None:
    modules = imports(f"from cgm_proxy.cli import main; main({arguments})")
    assert {module for module in modules if module.startswith("cgm_proxy")} == {"cgm_proxy", "cgm_proxy.cli"}
    assert packages(modules) == set()
    assert modules & {"asyncio", "dataclasses", "inspect", "pathlib", "shutil", "typing"} == set()


def test_check_imports_no_server(tmp_path: Path) -> None:
    file = tmp_path / "reading.json"
    file.write_bytes(encode({"resourceType": "Observation"}))
    modules = imports(f"from cgm_proxy.cli import main; main(['check', {str(file)!r}])")
    assert "fhirpathpy" in modules
    assert packages(modules) & SERVER == set()


@pytest.mark.parametrize(
    "statement",
    ["import cgm_proxy.healthcheck", "from cgm_proxy.cli import main; main(['serve', '--print-settings'])"],
)
def test_the_health_check_and_print_settings_import_no_server_and_no_rules(statement: str) -> None:
    assert packages(imports(statement)) & {*SERVER, "antlr4", "fhirpathpy", "lxml"} == set()
