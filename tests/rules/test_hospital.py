"""A hospital's own rules: the example directory `hospital/` has no problems, and the proxy judges by it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.client import Client
from support.places import RULES
from support.servers import Running, proxy

from cgm_proxy.rulekit.lint import lint
from cgm_proxy.rulekit.samples import run_samples
from cgm_proxy.sandbox.simulation.submissions import patient, submission

HOSPITAL = Path(__file__).parent / "hospital"
DIALECTS = ("argo", "0.1.0", "1.0.0-ballot", "1.0.0")
MASS = {"argo": "cgm-sensor-reading-mass"}
MOLAR = {"argo": "cgm-sensor-reading-molar"}


def test_the_example_has_no_problems_and_its_samples_hold() -> None:
    assert lint(RULES, HOSPITAL) == []
    report = run_samples(RULES, HOSPITAL)
    assert report.failures == []
    assert report.samples >= 15
    unsampled = {c.profile.name: c.unsampled for c in report.coverages if c.profile.rules[0].key.endswith("-device")}
    assert unsampled["cgm-sensor-reading-mass-per-volume"] == ()
    assert unsampled["cgm-sensor-reading-mass"] == ("device",)


@pytest.fixture(scope="module")
def running(sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with proxy(sandbox, tmp_path_factory.mktemp("hospital"), {"rules": HOSPITAL}) as server:
        yield server


def sent(
    running: Running, sandbox: str, dialect: str, change: Any, units: Any = "mass"
) -> tuple[list[str], list[list[str]]]:
    """Submit a device and three readings, of which the second is changed; give the statuses, and what is said of each."""
    about = f"Patient/p{uuid4().hex[:12]}"
    assert Client(sandbox).put(about, patient(about.partition("/")[2])).status == 201
    bundle = submission(dialect, about, readings=3, summary=False, pdf=False, units=units)
    change(bundle["entry"][2]["resource"])
    answer = Client(running.url).submit(dialect, bundle)
    responses = [entry["response"] for entry in answer.body["entry"]]
    told = [
        [f"{issue['severity']}: {issue['diagnostics']}" for issue in response.get("outcome", {}).get("issue", [])]
        for response in responses
    ]
    return [response["status"][:3] for response in responses], told


def value(number: Any) -> Any:
    return lambda reading: reading["valueQuantity"].update(value=number)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_implausible_value_is_stored_with_a_warning(running: Running, sandbox: str, dialect: str) -> None:
    name = MASS.get(dialect, "cgm-sensor-reading-mass-per-volume")
    statuses, told = sent(running, sandbox, dialect, value(700))
    assert statuses == ["201"] * 4
    required = f"valueQuantity.value is 700; {name} requires 20 to 600 mg/dL; check the sensor and the unit"
    assert told == [[], [], [f"warning: {required}"], []]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_implausible_value_in_mmol_is_stored_with_a_warning(running: Running, sandbox: str, dialect: str) -> None:
    name = MOLAR.get(dialect, "cgm-sensor-reading-moles-per-volume")
    statuses, told = sent(running, sandbox, dialect, value(120), units="molar")
    assert statuses == ["201"] * 4
    required = f"valueQuantity.value is 120; {name} requires 1.1 to 33.3 mmol/L; check the sensor and the unit"
    assert told == [[], [], [f"warning: {required}"], []]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_reading_without_a_device_is_refused_alone(running: Running, sandbox: str, dialect: str) -> None:
    name = MASS.get(dialect, "cgm-sensor-reading-mass-per-volume")
    statuses, told = sent(running, sandbox, dialect, lambda reading: reading.pop("device"))
    assert [status[0] for status in statuses] == ["2", "2", "4", "2"]
    required = (
        f"device is missing; {name} requires the device that measured it; add device.reference or device.identifier"
    )
    assert told == [[], [], [f"error: {required}"], []]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_shipped_rule_that_is_made_a_warning_warns(running: Running, sandbox: str, dialect: str) -> None:
    name = MASS.get(dialect, "cgm-sensor-reading-mass-per-volume")
    statuses, told = sent(running, sandbox, dialect, lambda reading: reading["valueQuantity"].update(unit="mg/dL"))
    assert statuses == ["201"] * 4
    required = f'valueQuantity.unit is "mg/dL"; {name} requires "mg/dl" (the code stays "mg/dL")'
    assert told == [[], [], [f"warning: {required}"], []]
