"""Simulated readings look like sensor data, and the figures about readings are right."""

import statistics
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from support.places import ROOT

from cgm_proxy.sandbox.simulation.readings import Figures, figures, molar, simulated_readings

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(*values, step=5):
    """Return readings of these values, one every `step` minutes."""
    return [(START + timedelta(minutes=step * n), value) for n, value in enumerate(values)]


class TestReadings:
    def test_two_weeks_look_like_sensor_data(self):
        values = [value for _, value in simulated_readings()]
        assert len(values) == 4032
        assert min(values) >= 40
        assert max(values) <= 400
        steps = [abs(b - a) for a, b in pairwise(values)]
        assert max(steps) < 40, "glucose changes slowly"
        assert len(set(values[:288])) > 60, "no day is flat"
        days = [values[day : day + 288] for day in range(0, 4032, 288)]
        assert statistics.pstdev(statistics.mean(day) for day in days) > 5, "days differ"

    @pytest.mark.parametrize("step", [1, 5, 15])
    def test_instants_are_a_step_apart(self, step):
        readings = simulated_readings(100, start=START, step_minutes=step)
        assert readings[0][0] == START
        assert {b - a for (a, _), (b, _) in pairwise(readings)} == {timedelta(minutes=step)}

    def test_readings_every_minute_contain_the_readings_every_five_minutes(self):
        assert simulated_readings(500, step_minutes=1)[::5] == simulated_readings(100)

    def test_ninety_days_repeat_the_two_weeks(self):
        values = [value for _, value in simulated_readings(25_920)]
        assert values[4032:8064] == values[:4032]

    def test_the_data_file_says_how_it_was_made(self):
        header = (ROOT / "cgm_proxy/sandbox/simulation/readings.csv").read_text().splitlines()[:3]
        assert all(line.startswith("#") for line in header)
        for word in ("simglucose", "MIT", "seed", "simulate_readings.py"):
            assert word in "\n".join(header)


class TestFigures:
    def test_figures_of_a_known_series(self):
        computed = figures(at(50, 60, 100, 200, 300))
        assert computed == Figures(
            start=START,
            end=START + timedelta(minutes=20),
            count=5,
            mean=Decimal("142.0"),
            gmi=Decimal("6.7"),
            cv=Decimal("74.9"),
            days_of_wear=1,
            sensor_active=Decimal("100.0"),
            ranges=(Decimal("20.0"),) * 5,
        )

    @pytest.mark.parametrize(
        ("value", "index"),
        [(40, 0), (53, 0), (54, 1), (69, 1), (70, 2), (180, 2), (181, 3), (250, 3), (251, 4), (400, 4)],
    )
    def test_ranges_have_no_gap_and_no_overlap(self, value, index):
        assert figures(at(value)).ranges[index] == Decimal("100.0")

    def test_ranges_sum_to_100_although_each_is_rounded(self):
        assert figures(at(50, 60, 100)).ranges == tuple(map(Decimal, ("33.4", "33.3", "33.3", "0.0", "0.0")))
        assert sum(figures(simulated_readings(1000)).ranges) == 100

    def test_gaps_lower_the_sensor_active_percentage(self):
        readings = at(*[100] * 10)
        assert figures(readings[:4] + readings[9:]).sensor_active == Decimal("50.0")

    def test_days_of_wear_count_days_with_readings(self):
        assert figures([*at(100), (START + timedelta(days=3), 100)]).days_of_wear == 2

    def test_no_readings_are_refused(self):
        with pytest.raises(ValueError, match="at least one"):
            figures([])

    def test_molar_keeps_one_decimal_place(self):
        assert [str(molar(value)) for value in (40, 100, 126, 180)] == ["2.2", "5.6", "7.0", "10.0"]
