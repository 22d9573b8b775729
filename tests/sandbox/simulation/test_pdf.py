"""The PDF of a simulated report is valid and shows the figures."""

import base64
import re
import shutil
import subprocess

import pytest

from cgm_proxy.sandbox.simulation.readings import figures, simulated_readings
from cgm_proxy.sandbox.simulation.submissions import submission


@pytest.fixture
def pdf():
    report = submission("argo", "Patient/a", send_readings=False)["entry"][-1]["resource"]
    return base64.b64decode(report["presentedForm"][0]["data"], validate=True)


def test_the_cross_reference_table_points_at_the_objects(pdf):
    table = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
    assert pdf[table:].startswith(b"xref\n0 6\n")
    offsets = re.findall(rb"^(\d{10}) 00000 n $", pdf[table:], re.MULTILINE)
    for number, offset in enumerate(offsets, start=1):
        assert pdf[int(offset) :].startswith(b"%d 0 obj" % number)


def test_the_report_shows_the_figures(pdf):
    computed = figures(simulated_readings())
    for value in (computed.mean, computed.gmi, computed.cv, computed.sensor_active, *computed.ranges):
        assert str(value).encode() in pdf


@pytest.mark.skipif(not shutil.which("pdftotext"), reason="pdftotext is not installed")
def test_pdftotext_reads_the_report(pdf, tmp_path):
    (tmp_path / "report.pdf").write_bytes(pdf)
    text = subprocess.run(["pdftotext", tmp_path / "report.pdf", "-"], check=True, capture_output=True).stdout
    assert b"Glucose management indicator (GMI)" in text
