"""The figures: ratios of the medians of runs, with the smallest and largest ratio of single rounds."""

import sys
from dataclasses import dataclass, field
from statistics import median

import msgspec


@dataclass
class Runs:
    """The measurements: for each way, one number a run, in order."""

    by_way: dict[str, list[float]] = field(default_factory=dict)

    def add(self, way: str, measured: float) -> None:
        """Add a measurement, and print it to standard error."""
        self.by_way.setdefault(way, []).append(measured)
        print(f"{way} {measured:.3f}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Figure:
    """The ratio of the medians of two ways, or the median of one; `target` is the limit that it should keep."""

    name: str
    way: str
    to: str | None
    target: str
    meaning: str

    def met(self, value: float) -> str:
        """Return "yes" or "NO" for a value that keeps the target or not; "" if there is no target."""
        if not self.target:
            return ""
        sign, limit = self.target.split()
        return "yes" if (value <= float(limit) if sign == "<=" else value >= float(limit)) else "NO"


FIGURES = (
    Figure("first", "proxy_4032", "direct_4032", "<= 0.6", "4,032 new readings / as one plain batch to HAPI"),
    Figure("first_conditional", "proxy_4032", "direct_conditional", "<= 0.45", "as first / a batch with ifNoneExist"),
    Figure("again", "again_4032", "direct_4032", "<= 0.1", "the same sent again / that plain batch"),
    Figure("first_288", "proxy_288", "direct_288", "", "288 new readings / as one plain batch"),
    Figure("first_25920", "proxy_25920", "direct_25920", "", "25,920 new readings / as one plain batch"),
    Figure("first_cpu", "proxy_cpu_4032", "direct_cpu_4032", "", "as first, in CPU time of HAPI, its database and the proxy"),
    Figure("stream", "stream_proxy", "stream_nginx", ">= 0.9", "small GETs a second through the proxy / through nginx"),
    Figure("isolation", "beside_proxy_p99", "beside_direct_p99", "<= 1",
           "p99 of small GETs while 25,920 readings go through the proxy / while they go directly to HAPI"),
    Figure("us_per_reading", "us_per_reading_4032", None, "<= 60", "the proxy's CPU time per new reading, of 4,032 (us)"),
    Figure("us_per_reading_288", "us_per_reading_288", None, "", "the same, of 288"),
    Figure("us_per_reading_25920", "us_per_reading_25920", None, "", "the same, of 25,920"),
    Figure("growth_4032", "us_per_reading_4032", "us_per_reading_288", "<= 1.1", "us_per_reading of 4,032 / of 288"),
    Figure("growth_25920", "us_per_reading_25920", "us_per_reading_4032", "<= 1.1", "us_per_reading of 25,920 / of 4,032"),
    Figure("us_per_reading_no_memory", "us_per_reading_no_memory", None, "", "the same, of 4,032, without verdict cache"),
    Figure("all_different", "us_different", "us_plain", "<= 1.1", "judging readings that all differ / without verdict cache"),
    Figure("peak_memory", "peak_memory", None, "<= 6",
           "peak memory / size of a body of 129,600 readings, with a stand-in as upstream"),
    Figure("peak_memory_above_idle", "peak_memory_above_idle", None, "<= 6", "the same, without the memory of the idle proxy"),
)  # fmt: skip


def spread(figure: Figure, runs: Runs) -> tuple[float, float, float] | None:
    """Return the figure, and the smallest and largest among single rounds; None if it was not measured."""
    if figure.way not in runs.by_way or (figure.to and figure.to not in runs.by_way):
        return None
    numerators = runs.by_way[figure.way]
    denominators = runs.by_way[figure.to] if figure.to else [1.0] * len(numerators)
    rounds = [above / below for above, below in zip(numerators, denominators, strict=False)]
    return median(numerators) / median(denominators), min(rounds), max(rounds)


def table(runs: Runs) -> str:
    """Return the figures and the measurements as text for a terminal."""
    lines = [f"{'figure':<25}{'median':>10}  {'min..max':<20}{'target':<9}{'met':<5}meaning"]
    for figure in FIGURES:
        if found := spread(figure, runs):
            value, low, high = found
            limits = f"{low:.3f}..{high:.3f}"
            rest = f"{limits:<20}{figure.target:<9}{figure.met(value):<5}{figure.meaning}"
            lines.append(f"{figure.name:<25}{value:>10.3f}  {rest}")
    lines += ["", f"{'s, ms, us, or 1/s':<30}{'median':>10}  {'min..max':<20}runs"]
    for way, measured in runs.by_way.items():
        lines.append(
            f"{way:<30}{median(measured):>10.3f}  {f'{min(measured):.3f}..{max(measured):.3f}':<20}{len(measured)}"
        )
    return "\n".join(lines)


def flat_json(runs: Runs) -> bytes:
    """Return one flat object: each figure with its `_min` and `_max`, and the same for each way's median under `raw_`."""
    flat: dict[str, float] = {}
    for figure in FIGURES:
        if found := spread(figure, runs):
            flat |= dict(zip((figure.name, f"{figure.name}_min", f"{figure.name}_max"), found, strict=True))
    for way, measured in runs.by_way.items():
        flat |= {f"raw_{way}": median(measured), f"raw_{way}_min": min(measured), f"raw_{way}_max": max(measured)}
    return msgspec.json.format(msgspec.json.encode({key: round(value, 4) for key, value in flat.items()}))
