"""Simulated glucose readings, and the figures that a CGM summary has about readings.

`readings.csv` holds two weeks of simulated values; its header says how they were made.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib.resources import files
from itertools import pairwise
from math import sqrt

#: An instant, and the glucose that the sensor measured then, in mg/dL.
Reading = tuple[datetime, int]

#: Readings in two weeks at one every `STEP_MINUTES`.
TWO_WEEKS = 4032
STEP_MINUTES = 5

START = datetime(2024, 5, 1, tzinfo=UTC)

#: mg/dL in one mmol/L: the molar mass of glucose is 180.156 g/mol.
MG_PER_DL_IN_MMOL_PER_L = Decimal("18.0156")

#: Lower bounds of the ranges above "very low", in mg/dL (guide: <54, 54-69, 70-180, 181-250, >250). The ranges are
#: half-open, so that their shares sum to 100 %.
LOWER_BOUNDS = (54, 70, 181, 251)

TENTH = Decimal("0.1")


def simulated_readings(
    count: int = TWO_WEEKS, *, start: datetime = START, step_minutes: int = STEP_MINUTES
) -> list[Reading]:
    """Return `count` readings from `start` (aware), one every `step_minutes`.

    Values between the simulated ones are interpolated. After two weeks the values repeat.
    """
    return [
        (start + timedelta(minutes=minutes), simulated_glucose(minutes))
        for minutes in range(0, count * step_minutes, step_minutes)
    ]


def simulated_glucose(minutes: int) -> int:
    """Return the simulated glucose at that many minutes after the first midnight, in mg/dL."""
    values = _simulated_values()
    index, rest = divmod(minutes, STEP_MINUTES)
    before, after = values[index % TWO_WEEKS], values[(index + 1) % TWO_WEEKS]
    return before + round((after - before) * rest / STEP_MINUTES)


def molar(mg_per_dl: int | Decimal) -> Decimal:
    """Return a glucose value in mmol/L, with one decimal place."""
    return (Decimal(mg_per_dl) / MG_PER_DL_IN_MMOL_PER_L).quantize(TENTH, ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a summary. Percentages and `mean` (mg/dL) have one decimal place."""

    start: datetime
    end: datetime
    count: int
    mean: Decimal
    gmi: Decimal
    """Glucose management indicator: 3.31 + 0.02392 x mean in mg/dL (Bergenstal 2018, doi:10.2337/dc18-1581)."""
    cv: Decimal
    days_of_wear: int
    """24-hour periods, counted from the first reading, in which there is a reading."""
    sensor_active: Decimal
    """Percentage of the readings that were possible, given the shortest interval between two readings."""
    ranges: tuple[Decimal, ...]
    """Percentages of time very low, low, in target, high and very high; they sum to 100.0."""


def figures(readings: Sequence[Reading]) -> Figures:
    """Return the figures of readings, which are in the order of time; raise ValueError if there are none."""
    if not readings:
        raise ValueError("a summary needs at least one reading")
    (start, _), (end, _) = readings[0], readings[-1]
    values = [value for _, value in readings]
    mean = Decimal(sum(values)) / len(values)
    deviation = Decimal(sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)))
    return Figures(
        start=start,
        end=end,
        count=len(values),
        mean=_tenths(mean),
        gmi=_tenths(Decimal("3.31") + Decimal("0.02392") * mean),
        cv=_tenths(100 * deviation / mean),
        days_of_wear=len({(instant - start) // timedelta(days=1) for instant, _ in readings}),
        sensor_active=_tenths(Decimal(100 * len(values)) / _possible(readings)),
        ranges=_ranges(values),
    )


def _possible(readings: Sequence[Reading]) -> int:
    """Return how many readings there would be without gaps."""
    steps = [later - earlier for (earlier, _), (later, _) in pairwise(readings) if later > earlier]
    return max(len(readings), (readings[-1][0] - readings[0][0]) // min(steps) + 1) if steps else len(readings)


def _ranges(values: Sequence[int]) -> tuple[Decimal, ...]:
    counts = [0] * (len(LOWER_BOUNDS) + 1)
    for value in values:
        counts[bisect_right(LOWER_BOUNDS, value)] += 1
    # Round down to tenths of a percent, then add the remaining tenths where the rounding cut off most.
    tenths = [1000 * count // len(values) for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: 1000 * counts[i] % len(values), reverse=True)
    for index in by_remainder[: 1000 - sum(tenths)]:
        tenths[index] += 1
    return tuple(Decimal(tenth).scaleb(-1) for tenth in tenths)


def _tenths(value: Decimal) -> Decimal:
    return value.quantize(TENTH, ROUND_HALF_UP)


@cache
def _simulated_values() -> tuple[int, ...]:
    lines = files("cgm_proxy.sandbox.simulation").joinpath("readings.csv").read_text(encoding="ascii").splitlines()
    return tuple(int(value) for line in lines if not line.startswith("#") for value in line.split(","))
