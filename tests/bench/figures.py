"""From runs to figures: ratios of medians, with the spread of the runs that stood beside one another."""

import sys
from dataclasses import dataclass, field
from statistics import median

import msgspec


@dataclass
class Runs:
    """What was measured: for each way of doing it, one number a run, in order."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def add(self, way: str, measured: float) -> None:
        """Keep one more number, and say it to whoever waits."""
        self.of.setdefault(way, []).append(measured)
        print(f"{way} {measured:.3f}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Figure:
    """A ratio of the medians of two ways, or the median of one; `target` is what it should reach."""

    name: str
    way: str
    to: str | None
    target: str
    meaning: str

    def met(self, value: float) -> str:
        """Say whether a value reaches the target; "" where there is none."""
        if not self.target:
            return ""
        sign, wanted = self.target.split()
        return "yes" if (value <= float(wanted) if sign == "<=" else value >= float(wanted)) else "NO"


FIGURES = (
    Figure("first", "proxy_4032", "direct_4032", "<= 0.6", "4,032 new readings / as one plain batch to HAPI"),
    Figure("first_conditional", "proxy_4032", "direct_conditional", "<= 0.45", "as first / a batch with ifNoneExist"),
    Figure("again", "again_4032", "direct_4032", "<= 0.1", "the same sent again / that plain batch"),
    Figure("first_288", "proxy_288", "direct_288", "", "288 new readings / as one plain batch"),
    Figure("first_25920", "proxy_25920", "direct_25920", "", "25,920 new readings / as one plain batch"),
    Figure("first_cpu", "proxy_cpu_4032", "direct_cpu_4032", "", "as first, in CPU time of HAPI, its store and the proxy"),
    Figure("stream", "stream_proxy", "stream_nginx", ">= 0.9", "small GETs a second / through nginx"),
    Figure("isolation", "beside_proxy_p99", "beside_direct_p99", "<= 1",
           "p99 of small GETs while 25,920 readings go through the proxy / while they go straight to HAPI"),
    Figure("us_per_reading", "us_per_reading_4032", None, "<= 60", "the proxy's CPU time for a new reading of 4,032, in us"),
    Figure("us_per_reading_288", "us_per_reading_288", None, "", "of 288"),
    Figure("us_per_reading_25920", "us_per_reading_25920", None, "", "of 25,920"),
    Figure("growth_4032", "us_per_reading_4032", "us_per_reading_288", "<= 1.1", "a reading of 4,032 / of 288"),
    Figure("growth_25920", "us_per_reading_25920", "us_per_reading_4032", "<= 1.1", "a reading of 25,920 / of 4,032"),
    Figure("us_per_reading_no_memory", "us_per_reading_no_memory", None, "", "of 4,032, with the shapes' memory off"),
    Figure("all_different", "us_different", "us_plain", "<= 1.1", "to judge readings of as many shapes / without the memory"),
    Figure("peak_memory", "peak_memory", None, "<= 6",
           "peak, the idle proxy included / body of 129,600 readings; upstream: a stand-in"),
    Figure("peak_memory_above_idle", "peak_memory_above_idle", None, "<= 6", "as that, above the idle proxy"),
)  # fmt: skip


def spread(figure: Figure, runs: Runs) -> tuple[float, float, float] | None:
    """Give the figure, and its smallest and largest among the single rounds; None where it was not measured."""
    if figure.way not in runs.of or (figure.to and figure.to not in runs.of):
        return None
    ways = runs.of[figure.way]
    others = runs.of[figure.to] if figure.to else [1.0] * len(ways)
    rounds = [way / other for way, other in zip(ways, others, strict=False)]
    return median(ways) / median(others), min(rounds), max(rounds)


def table(runs: Runs) -> str:
    """Give the figures, then what they are made of, as text for a terminal."""
    lines = [f"{'figure':<25}{'median':>10}  {'min..max':<20}{'target':<9}{'met':<5}meaning"]
    for figure in FIGURES:
        if found := spread(figure, runs):
            value, low, high = found
            between = f"{low:.3f}..{high:.3f}"
            told = f"{between:<20}{figure.target:<9}{figure.met(value):<5}{figure.meaning}"
            lines.append(f"{figure.name:<25}{value:>10.3f}  {told}")
    lines += ["", f"{'seconds, ms, us, or a second':<30}{'median':>10}  {'min..max':<20}runs"]
    for way, measured in runs.of.items():
        lines.append(
            f"{way:<30}{median(measured):>10.3f}  {f'{min(measured):.3f}..{max(measured):.3f}':<20}{len(measured)}"
        )
    return "\n".join(lines)


def flat_json(runs: Runs) -> bytes:
    """Give one flat object: each figure with its `_min` and `_max`, and each way's median likewise under `raw_`."""
    flat: dict[str, float] = {}
    for figure in FIGURES:
        if found := spread(figure, runs):
            flat |= dict(zip((figure.name, f"{figure.name}_min", f"{figure.name}_max"), found, strict=True))
    for way, measured in runs.of.items():
        flat |= {f"raw_{way}": median(measured), f"raw_{way}_min": min(measured), f"raw_{way}_max": max(measured)}
    return msgspec.json.format(msgspec.json.encode({key: round(value, 4) for key, value in flat.items()}))
