"""Simulated glucose, and the figures that a CGM summary gives of readings.

`readings.csv` holds two weeks, simulated once; its header says how.
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

#: An instant and what the sensor read then, in mg/dL.
Reading = tuple[datetime, int]

#: Readings in two weeks at the sensor's step, and that step in minutes.
TWO_WEEKS = 4032
STEP_MINUTES = 5

START = datetime(2024, 5, 1, tzinfo=UTC)

#: mg/dL in one mmol/L: glucose has 180.156 g/mol.
MG_PER_DL_IN_MMOL_PER_L = Decimal("18.0156")

#: Where the ranges above "very low" begin, in mg/dL; they are half-open, so that they sum to 100 %
#: (guide: <54, 54-69, 70-180, 181-250, >250).
RANGES_BEGIN = (54, 70, 181, 251)

TENTH = Decimal("0.1")


def readings(count: int = TWO_WEEKS, *, start: datetime = START, step_minutes: int = STEP_MINUTES) -> list[Reading]:
    """Give `count` readings from `start` (aware), one every `step_minutes`, in mg/dL.

    Between the simulated values it interpolates; after two weeks it begins again.
    """
    return [
        (start + timedelta(minutes=minutes), glucose(minutes))
        for minutes in range(0, count * step_minutes, step_minutes)
    ]


def glucose(minutes: int) -> int:
    """Give the simulated glucose that many minutes after the first midnight, in mg/dL."""
    values = _simulated()
    index, rest = divmod(minutes, STEP_MINUTES)
    before, after = values[index % TWO_WEEKS], values[(index + 1) % TWO_WEEKS]
    return before + round((after - before) * rest / STEP_MINUTES)


def molar(mg_per_dl: int | Decimal) -> Decimal:
    """Convert mg/dL to mmol/L, with one decimal place."""
    return (Decimal(mg_per_dl) / MG_PER_DL_IN_MMOL_PER_L).quantize(TENTH, ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a summary says of readings. Percentages and `mean` (mg/dL) have one decimal place."""

    start: datetime
    end: datetime
    count: int
    mean: Decimal
    gmi: Decimal
    """Glucose management indicator: 3.31 + 0.02392 x mean in mg/dL (Bergenstal 2018, doi:10.2337/dc18-1581)."""
    cv: Decimal
    days_of_wear: int
    """24-hour periods from the first reading on that hold a reading."""
    sensor_active: Decimal
    """Readings out of those that the shortest interval between two of them makes possible."""
    ranges: tuple[Decimal, ...]
    """Shares of time very low, low, in target, high and very high; they sum to 100.0."""


def figures(taken: Sequence[Reading]) -> Figures:
    """Compute the figures of readings in the order of time. Raises ValueError where there are none."""
    if not taken:
        raise ValueError("a summary needs at least one reading")
    (start, _), (end, _) = taken[0], taken[-1]
    values = [value for _, value in taken]
    mean = Decimal(sum(values)) / len(values)
    deviation = Decimal(sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)))
    return Figures(
        start=start,
        end=end,
        count=len(values),
        mean=_tenths(mean),
        gmi=_tenths(Decimal("3.31") + Decimal("0.02392") * mean),
        cv=_tenths(100 * deviation / mean),
        days_of_wear=len({(instant - start) // timedelta(days=1) for instant, _ in taken}),
        sensor_active=_tenths(Decimal(100 * len(values)) / _possible(taken)),
        ranges=_ranges(values),
    )


def _possible(taken: Sequence[Reading]) -> int:
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(taken) if later > earlier]
    return max(len(taken), (taken[-1][0] - taken[0][0]) // min(gaps) + 1) if gaps else len(taken)


def _ranges(values: Sequence[int]) -> tuple[Decimal, ...]:
    counts = [0] * (len(RANGES_BEGIN) + 1)
    for value in values:
        counts[bisect_right(RANGES_BEGIN, value)] += 1
    # Rounded down to tenths of a percent; the tenths left over go where most was cut off.
    tenths = [1000 * count // len(values) for count in counts]
    by_rest = sorted(range(len(counts)), key=lambda i: 1000 * counts[i] % len(values), reverse=True)
    for index in by_rest[: 1000 - sum(tenths)]:
        tenths[index] += 1
    return tuple(Decimal(tenth).scaleb(-1) for tenth in tenths)


def _tenths(value: Decimal) -> Decimal:
    return value.quantize(TENTH, ROUND_HALF_UP)


@cache
def _simulated() -> tuple[int, ...]:
    lines = files("cgm_proxy.sandbox.simulation").joinpath("readings.csv").read_text(encoding="ascii").splitlines()
    return tuple(int(value) for line in lines if not line.startswith("#") for value in line.split(","))
