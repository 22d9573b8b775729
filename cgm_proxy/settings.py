"""Settings: one frozen object, read once at the start from a YAML file and the environment.

This module is the only reader of the environment. Every field below is a key of the YAML file (`section: {key: value}`)
and an environment variable (`CGM_PROXY_SECTION_KEY`, for example `CGM_PROXY_UPSTREAM_URL`), which wins over the file.
The README's table is made from the fields' metadata.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Policy = Literal["accept", "warn", "reject"]


def _key(default: Any, doc: str, **more: Any) -> Any:
    return field(default=default, metadata={"doc": doc, **more})


@dataclass(frozen=True, slots=True)
class Upstream:
    """The FHIR server behind the proxy."""

    url: str = _key("http://127.0.0.1:8081/fhir", "Base URL of the FHIR server")
    token: str | None = _key(
        None,
        "Service token for the proxy's own reads (standing orders); without it the submitter's Authorization is used",
        secret=True,
    )
    connect_timeout: float = _key(5.0, "Seconds to connect before 503")
    read_timeout: float = _key(60.0, "Seconds of silence before 504")
    retries: int = _key(4, "How often a chunk is sent again after 5xx, 409, reset or timeout")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the proxy listens."""

    host: str = _key("0.0.0.0", "Address of the public port")
    port: int = _key(8080, "Public port; 0 takes a free one")
    public_url: str = _key(
        "http://localhost:8080/fhir", "Base URL that submitters use; links and locations in answers point here"
    )
    ops_host: str = _key("0.0.0.0", "Address of the operations port")
    ops_port: int = _key(9090, "Port of /metrics, /healthz and /readyz; never expose it publicly")
    workers: int = _key(1, "Processes that share the public port")
    stop_timeout: float = _key(30.0, "Seconds that a stopping proxy gives to what is in flight")


@dataclass(frozen=True, slots=True)
class Policies:
    """What a finding about a standing order does: `accept`, `warn` (an information issue in the answer) or `reject`."""

    no_order: Policy = _key("accept", "The patient has no active order")
    incomplete: Policy = _key("reject", "No schedule has all of its profiles in the submission")
    unsolicited: Policy = _key("reject", "No order asks for the entry's profile")
    outside_lookback: Policy = _key("warn", "The entry is older than the order's lookback period")
    too_often: Policy = _key("warn", "The patient's last submission is more recent than the order's period")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one submission may cost."""

    body_bytes: int = _key(64 * 2**20, "Largest body of a submission, compressed or inflated (bytes)")
    entries: int = _key(50_000, "Most entries in a submission")
    atomic_entries: int = _key(
        500, "Most entries in an atomic (tagged `transaction`) submission, which goes upstream in one piece"
    )
    depth: int = _key(64, "Deepest nesting of JSON or XML")
    in_flight: int = _key(8, "Submissions worked on at once, before 503 with Retry-After")
    seconds: float = _key(600.0, "Longest time for one submission (seconds)")


@dataclass(frozen=True, slots=True)
class Forward:
    """How accepted entries go upstream."""

    chunk: int = _key(100, "Entries in one transaction")
    concurrency: int = _key(2, "Transactions of one submission under way at once")


@dataclass(frozen=True, slots=True)
class Cache:
    """What is remembered; caches only save work."""

    orders_seconds: float = _key(
        300.0, "How long a patient's standing orders are remembered, also that there are none (seconds)"
    )
    orders: int = _key(10_000, "Patients whose orders are remembered")
    known_seconds: float = _key(
        3600.0, "How long the location of a stored entry is remembered (seconds); 0 asks upstream every time"
    )
    known: int = _key(500_000, "Stored entries that are remembered")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; see each section."""

    mode: Literal["enforce", "observe"] = _key("enforce", "`observe` judges and counts, and rejects nothing")
    detection: Literal["tag", "content"] = _key("tag", "`content` judges untagged Bundles and single CGM resources too")
    allow: tuple[str, ...] = _key(
        ("Observation", "DiagnosticReport", "Device"), "Resource types that a submission may create"
    )
    rules: str | None = _key(None, "Directory of a hospital's own rules, added to the shipped ones")
    log_level: Literal["debug", "info", "warning", "error"] = _key("info", "Least severe log line written")
    listen: Listen = field(default_factory=Listen)
    upstream: Upstream = field(default_factory=Upstream)
    policies: Policies = field(default_factory=Policies)
    limits: Limits = field(default_factory=Limits)
    forward: Forward = field(default_factory=Forward)
    cache: Cache = field(default_factory=Cache)
