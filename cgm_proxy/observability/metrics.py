"""All metrics of the proxy, in one place. Names and labels are part of its interface; labels never hold patient data.

The help texts also make the table of metrics in the documentation.
"""

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

#: Upper bounds of the histograms' buckets (seconds).
_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

#: Labels by metric, for the documentation. `_counter` adds its own.
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
    "Submissions, by dialect and outcome: stored, duplicate (all of it), partly (stored), refused, failed (upstream), kept "
    "(to be worked on later), cancelled (a kept one, by its submitter)",
    "dialect",
    "outcome",
)
SUBMISSION_SECONDS = Histogram(
    "cgm_proxy_submission_seconds",
    "Time from the last byte of a submission to its response",
    buckets=_TIMES,
    registry=REGISTRY,
)
ENTRIES = _counter(
    "entries",
    "Entries of submissions, by profile and verdict: created, duplicate, refused, unknown",
    "profile",
    "verdict",
)
REFUSALS = _counter(
    "refusals",
    "Issues found in submissions, by rule id and severity; in observe mode errors are counted but refuse nothing",
    "rule",
    "severity",
)
DUPLICATES = _counter(
    "duplicates",
    "Entries that were found stored already: in the cache (memory or shared), by a search, by the submitter's condition",
    "found",
)
SHARED_FAULTS = _counter(
    "shared_memory_faults",
    "Calls to the shared cache that failed: timeout, refused (no connection, or it was lost), error (full, wrong password, "
    "not allowed)",
    "kind",
)
SHARED_UP = Gauge(
    "cgm_proxy_shared_memory_up",
    "1 while the shared cache is in use; 0 if it is unavailable or not configured",
    registry=REGISTRY,
)
ORDER_LOOKUPS = _counter(
    "order_lookups",
    "Look-ups of a patient's standing orders: hit (cached), miss (asked upstream), shared (with a look-up in progress)",
    "result",
)
UPSTREAM_SECONDS = Histogram(
    "cgm_proxy_upstream_seconds",
    "Time of requests to the upstream on behalf of submissions",
    buckets=_TIMES,
    registry=REGISTRY,
)
UPSTREAM_ERRORS = _counter(
    "upstream_errors",
    "Requests on behalf of submissions that failed without a response: refused, timeout, broken, tls",
    "kind",
)
CHUNKS = _counter("chunks", "Chunks of entries sent upstream, by outcome: stored, refused, unknown", "outcome")
CONCURRENCY = Gauge(
    "cgm_proxy_concurrency", "Most transactions that may be in flight upstream at the moment", registry=REGISTRY
)
CHUNK_ENTRIES = Gauge("cgm_proxy_chunk_entries", "Most entries that the next transaction may have", registry=REGISTRY)
RELOADS = _counter(
    "rule_reloads",
    "Reloads of the rules (SIGHUP): replaced, refused (a rule is faulty, the old ones stay in force)",
    "result",
)
RULES = Gauge("cgm_proxy_rules", "Rules in force, over all profiles", registry=REGISTRY)
IN_FLIGHT = Gauge("cgm_proxy_in_flight", "Submissions in progress", registry=REGISTRY)
JOBS = _counter(
    "jobs",
    "Kept submissions that have ended: finished, cancelled (by the submitter), failed (an internal error), given_up",
    "end",
)
JOBS_WAITING = Gauge("cgm_proxy_jobs_waiting", "Kept submissions that are waiting or in progress", registry=REGISTRY)
CONNECTIONS = Gauge("cgm_proxy_connections", "Open connections to the public port", registry=REGISTRY)
CONNECTIONS_CLOSED = _counter(
    "connections_closed",
    "Connections that the proxy ended: refused (too many, all in use), idle (too many, this one waited for a request), head (a "
    "request head that was too slow or too long), slow (a body or a reader)",
    "reason",
)
LOOP_LAG = Gauge(
    "cgm_proxy_event_loop_lag_seconds", "Delay of the event loop at the last measurement", registry=REGISTRY
)


def count(judgement: Judgement, responses: Sequence[EntryResponse]) -> None:
    """Count the entries of a finished submission, and the issues found in it."""
    judged = zip(judgement.verdicts, responses, strict=True)
    entries = Tally((verdict.profiles[:1], response.status) for verdict, response in judged)
    issues = Tally((issue.rule, issue.severity) for response in responses for issue in response.issues)
    issues.update((issue.rule, issue.severity) for issue in judgement.issues)
    for (profiles, status), number in entries.items():
        ENTRIES.labels("".join(profiles).rpartition("/")[2] or "none", _verdict(status)).inc(number)
    for labels, number in issues.items():
        REFUSALS.labels(*labels).inc(number)


def _verdict(status: int) -> str:
    names = {200: "duplicate", 201: "created", 503: "unknown"}
    return names.get(status, "refused")


class _StreamCollector(Collector):
    """Converts the relay's own statistics to metrics when they are read, so that counting costs the relay nothing more."""

    def __init__(self) -> None:
        self.stats = StreamStats()

    def collect(self) -> Iterator[Metric]:
        """Yield the statistics as metrics."""
        stats = self.stats
        responses = CounterMetricFamily(
            "cgm_proxy_streamed_requests", "Streamed requests, by the status of the response", labels=["status"]
        )
        for status, number in stats.responses.items():
            responses.add_metric([str(status)], number)
        faults = CounterMetricFamily(
            "cgm_proxy_streamed_faults", "Streamed requests that failed, by rule id", labels=["rule"]
        )
        for rule, number in stats.faults.items():
            faults.add_metric([rule], number)
        sizes = CounterMetricFamily(
            "cgm_proxy_streamed_bytes", "Bytes of streamed requests (up) and responses (down)", labels=["direction"]
        )
        sizes.add_metric(["up"], stats.bytes_up)
        sizes.add_metric(["down"], stats.bytes_down)
        in_flight = GaugeMetricFamily(
            "cgm_proxy_streams_in_flight", "Streamed requests in flight", value=stats.in_flight
        )
        yield from (responses, faults, sizes, in_flight, self._latency())

    def _latency(self) -> Metric:
        bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self.stats.latency), strict=True))
        text = "Time until the upstream's response to a streamed request began (seconds)"
        return HistogramMetricFamily(
            "cgm_proxy_streamed_upstream_seconds", text, buckets=buckets, sum_value=self.stats.latency_sum
        )


_STREAMS = _StreamCollector()
REGISTRY.register(_STREAMS)


def expose_stream_stats(stats: StreamStats) -> None:
    """Show the statistics of this relay among the metrics."""
    _STREAMS.stats = stats


def table() -> str:
    """Return the table of metrics for the documentation."""
    rows = ["| metric | labels | meaning |", "|---|---|---|"]
    for family in REGISTRY.collect():
        suffix = "_total" if family.type == "counter" else ""
        rows.append(f"| `{family.name}{suffix}` | {_LABELS.get(family.name, '')} | {family.documentation} |")
    return "\n".join(rows)
