"""The metrics, as a table; labels hold no patient data. `count` adds a finished submission to them."""

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from cgm_proxy.core.submission.reply import EntryResponse
from cgm_proxy.core.submission.verdicts import Judgement
from cgm_proxy.observability.stream_stats import LATENCY_BOUNDS, StreamStats

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()

_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


#: Labels by metric, for the README.
_LABELS = {
    "cgm_proxy_streamed_requests": "`status`",
    "cgm_proxy_streamed_faults": "`rule`",
    "cgm_proxy_streamed_bytes": "`direction`",
}


def _counter(name: str, doc: str, *labels: str) -> Counter:
    _LABELS[f"cgm_proxy_{name}"] = ", ".join(f"`{label}`" for label in labels)
    return Counter(f"cgm_proxy_{name}", doc, labels, registry=REGISTRY)


SUBMISSIONS = _counter(
    "submissions",
    "Submissions, by dialect and by what became of them: stored, duplicate, partly, refused, failed, kept (for later), "
    "cancelled (a kept one, by its submitter)",
    "dialect",
    "outcome",
)
SUBMISSION_SECONDS = Histogram(
    "cgm_proxy_submission_seconds",
    "Time from a submission's last byte to its answer",
    buckets=_TIMES,
    registry=REGISTRY,
)
ENTRIES = _counter("entries", "Entries of submissions, by profile and verdict", "profile", "verdict")
REFUSALS = _counter("refusals", "Refused (or, in observe mode, found) by rule", "rule", "severity")
DUPLICATES = _counter("duplicates", "Entries that were stored already, by where that was found", "found")
SHARED_FAULTS = _counter(
    "shared_memory_faults",
    "Questions that the shared memory did not answer: timeout, refused (not there, or the connection broke), error (full, "
    "wrong password, not allowed)",
    "kind",
)
SHARED_UP = Gauge(
    "cgm_proxy_shared_memory_up",
    "Whether the shared memory is used: 0 where it is away, or none is set",
    registry=REGISTRY,
)
ORDER_LOOKUPS = _counter("order_lookups", "Look-ups of a patient's standing orders", "result")
UPSTREAM_SECONDS = Histogram(
    "cgm_proxy_upstream_seconds", "Time of the submissions' requests to the upstream", buckets=_TIMES, registry=REGISTRY
)
UPSTREAM_ERRORS = _counter("upstream_errors", "Requests that the upstream did not answer, by kind", "kind")
CHUNKS = _counter("chunks", "Transactions sent upstream, by what became of them", "outcome")
CONCURRENCY = Gauge(
    "cgm_proxy_concurrency", "Transactions that may be under way upstream at once now", registry=REGISTRY
)
CHUNK_ENTRIES = Gauge("cgm_proxy_chunk_entries", "Entries that the next transaction may have", registry=REGISTRY)
RELOADS = _counter("rule_reloads", "Times that the rules were read again (SIGHUP): replaced, refused", "result")
RULES = Gauge("cgm_proxy_rules", "Rules in force, of all profiles", registry=REGISTRY)
IN_FLIGHT = Gauge("cgm_proxy_in_flight", "Submissions being worked on", registry=REGISTRY)
JOBS = _counter("jobs", "Kept submissions, by how they ended: finished, cancelled, failed, given_up", "end")
JOBS_WAITING = Gauge("cgm_proxy_jobs_waiting", "Kept submissions that are not done", registry=REGISTRY)
LOOP_LAG = Gauge("cgm_proxy_event_loop_lag_seconds", "How late the event loop last was", registry=REGISTRY)


def count(judgement: Judgement, answers: Sequence[EntryResponse]) -> None:
    """Count the entries of a finished submission, and what was found about them."""
    judged = zip(judgement.verdicts, answers, strict=True)
    entries = Tally((verdict.profiles[:1], answer.status) for verdict, answer in judged)
    issues = Tally((issue.rule, issue.severity) for answer in answers for issue in answer.issues)
    issues.update((issue.rule, issue.severity) for issue in judgement.issues)
    for (profiles, status), number in entries.items():
        ENTRIES.labels("".join(profiles).rpartition("/")[2] or "none", _verdict(status)).inc(number)
    for labels, number in issues.items():
        REFUSALS.labels(*labels).inc(number)


def _verdict(status: int) -> str:
    names = {200: "duplicate", 201: "created", 503: "unknown"}
    return names.get(status, "refused")


class _Traffic(Collector):
    """Show the relay's own counts, which cost the relay nothing, when somebody asks."""

    def __init__(self) -> None:
        self.traffic = StreamStats()

    def collect(self) -> Iterator[Metric]:
        """Give the counts as metrics."""
        traffic = self.traffic
        answers = CounterMetricFamily(
            "cgm_proxy_streamed_requests", "Requests that passed through, by status", labels=["status"]
        )
        for status, number in traffic.responses.items():
            answers.add_metric([str(status)], number)
        faults = CounterMetricFamily(
            "cgm_proxy_streamed_faults", "Requests that could not pass, by rule", labels=["rule"]
        )
        for rule, number in traffic.faults.items():
            faults.add_metric([rule], number)
        sizes = CounterMetricFamily(
            "cgm_proxy_streamed_bytes", "Bytes that passed through, by direction", labels=["direction"]
        )
        sizes.add_metric(["up"], traffic.bytes_up)
        sizes.add_metric(["down"], traffic.bytes_down)
        under_way = GaugeMetricFamily(
            "cgm_proxy_streams_in_flight", "Requests passing through now", value=traffic.in_flight
        )
        yield from (answers, faults, sizes, under_way, self._latency())

    def _latency(self) -> Metric:
        bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self.traffic.latency), strict=True))
        text = "Time to the head of the upstream's answer, of what passed through (seconds)"
        return HistogramMetricFamily(
            "cgm_proxy_streamed_upstream_seconds", text, buckets=buckets, sum_value=self.traffic.latency_sum
        )


_TRAFFIC = _Traffic()
REGISTRY.register(_TRAFFIC)


def expose_stream_stats(traffic: StreamStats) -> None:
    """Show this relay's counts among the metrics."""
    _TRAFFIC.traffic = traffic


def table() -> str:
    """Give the README's table of metrics."""
    rows = ["| metric | labels | meaning |", "|---|---|---|"]
    for family in REGISTRY.collect():
        suffix = "_total" if family.type == "counter" else ""
        rows.append(f"| `{family.name}{suffix}` | {_LABELS.get(family.name, '')} | {family.documentation} |")
    return "\n".join(rows)
