"""The sections of the settings, each a frozen dataclass whose fields are keys: type, default, meaning, limits.

`settings.py` puts them together and reads them; the README's table and the chart's schema are made from the metadata.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Policy = Literal["accept", "warn", "reject"]


def setting(default: Any, doc: str, at_least: float | None = None, at_most: float | None = None, **more: Any) -> Any:
    """Describe a setting: its default, what it means, its limits, and more of a `Key`'s fields."""
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most, **more}
    return field(default=default, metadata=metadata, repr=not more.get("secret"))


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """The FHIR server behind the proxy."""

    url: str = setting("http://127.0.0.1:8081/fhir", "Base URL of the FHIR server", form="url")
    token: str | None = setting(
        None,
        "Service token for the proxy's own reads (standing orders); without it the submitter's Authorization is used",
        secret=True,
        form="token",
    )
    connect_timeout: float = setting(5.0, "Seconds to connect before 503", 0.01, 300)
    read_timeout: float = setting(60.0, "Seconds of silence before 504", 0.01, 3600)
    retries: int = setting(
        4,
        "How often a chunk is sent again after 429, 5xx, reset or timeout; three such chunks in a row end a submission",
        0,
        20,
    )
    send: Literal["auto", "transaction", "batch", "single"] = setting(
        "auto", "How entries are sent: `auto` takes the first of these that the server's CapabilityStatement names"
    )
    create: Literal["auto", "conditional", "update", "search"] = setting(
        "auto",
        "How each entry is created once: by conditional create, by update at an id made of its identity, or by searching before; "
        "`auto` takes the first of these that the CapabilityStatement allows",
    )
    bundle_entries: int = setting(
        0, "Entries that the server takes in one Bundle; 0 for no limit that is known", 0, 10_000
    )


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where the proxy listens."""

    host: str = setting("0.0.0.0", "Address of the public port", form="address")
    port: int = setting(8080, "Public port; 0 takes a free one", 0, 65535)
    public_url: str = setting(
        "http://localhost:8080/fhir",
        "Base URL that submitters use; links and locations in answers point here",
        form="url",
    )
    ops_host: str = setting("0.0.0.0", "Address of the operations port", form="address")
    ops_port: int = setting(9090, "Port of /metrics, /healthz and /readyz; never expose it publicly", 0, 65535)
    stop_timeout: float = setting(30.0, "Seconds that a stopping proxy gives to what is in flight", 0, 3600)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What a finding about a standing order does: `accept`, `warn` (an information issue in the answer) or `reject`."""

    no_order: Policy = setting("accept", "The patient has no active order")
    incomplete: Policy = setting("reject", "No schedule has all of its profiles in the submission")
    unsolicited: Policy = setting("reject", "No order asks for the entry's profile")
    outside_lookback: Policy = setting("warn", "The entry is older than the order's lookback period")
    too_often: Policy = setting("warn", "The patient's last submission is more recent than the order's period")


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one submission may cost."""

    body_bytes: int = setting(
        64 * 2**20, "Largest body of a submission, compressed or inflated (bytes)", 1024, 4 * 2**30
    )
    entries: int = setting(50_000, "Most entries in a submission", 1, 1_000_000)
    atomic_entries: int = setting(
        500, "Most entries in an atomic (tagged `transaction`) submission, which goes upstream in one piece", 1, 10_000
    )
    depth: int = setting(64, "Deepest nesting of JSON or XML", 16, 256)
    in_flight: int = setting(8, "Submissions worked on at once, before 503 with Retry-After", 1, 10_000)
    seconds: float = setting(600.0, "Longest time for one submission (seconds)", 1, 86_400)


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How accepted entries go upstream."""

    chunk: int = setting(
        80, "Entries in one transaction, at most; fewer while the upstream is slow or fails", 1, 10_000
    )
    concurrency: int = setting(
        8,
        "Transactions under way at once, at most: it begins with 2, and more while that costs the upstream no time",
        1,
        64,
    )
    beside: float = setting(
        0.5,
        "Transactions under way at once, at most, while other requests stream through: 0.5 is one, half of the time; a server "
        "with cores to spare takes more",
        0.1,
        64,
    )


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What is remembered; caches only save work."""

    orders_seconds: float = setting(
        300.0, "How long a patient's standing orders are remembered, also that there are none (seconds)", 0, 86_400
    )
    orders: int = setting(10_000, "Patients whose orders are remembered", 1, 10_000_000)
    known_seconds: float = setting(
        600.0,
        "How long the location of a stored entry is remembered (seconds); 0 asks upstream every time",
        0,
        604_800,
    )
    known: int = setting(200_000, "Stored entries that are remembered, about 0.5 kB each", 1, 100_000_000)
    shared: str | None = setting(
        None,
        "URL of the Valkey or Redis that replicas share: `redis://`, `rediss://` (TLS) or `unix://`; without it each replica "
        "remembers for itself",
        secret=True,
        form="valkey url",
    )
    shared_timeout: float = setting(
        0.25, "Seconds to wait for an answer of the shared memory, before it is done without", 0.01, 5
    )


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Submissions with `Prefer: respond-async`, which are kept in a file and answered later."""

    path: str | None = setting(
        None,
        "SQLite file on a volume, of this replica alone, that keeps submissions with `Prefer: respond-async`; without it"
        " they are answered as any other",
        form="file",
    )
    at_once: int = setting(2, "Kept submissions worked on at once, beside `limits.in_flight` others", 1, 1000)
    waiting: int = setting(
        100, "Most submissions that are kept and not done, before 503 with Retry-After", 1, 1_000_000
    )
    waiting_bytes: int = setting(2**30, "Most bytes of their bodies, before 503 with Retry-After", 1024, 2**40)
    patience: float = setting(
        900.0, "How long a kept submission is tried again while the upstream fails (seconds)", 0, 604_800
    )
    kept_seconds: float = setting(86_400.0, "How long a result is kept (seconds)", 1, 31_536_000)
    kept_bytes: int = setting(2**28, "Most bytes of results; the oldest make room for new ones", 1024, 2**40)
    replica: str | None = setting(
        None, "Name of this replica among several, ending in its number; it is part of status URLs", form="replica"
    )
    peers: str | None = setting(
        None,
        "Public base URL of any replica as the others reach it, with `{replica}` for its name: polls go to the one that"
        " keeps the submission",
        form="replica url",
    )
