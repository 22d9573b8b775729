"""All settings there are: each field has a type with limits, a default and a description.

`schema.py` reads values by these types. The tables in the documentation and the chart's schema are generated from them.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import fields

from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.settings.formats import (
    BaseUrl,
    DirectoryPath,
    FilePath,
    Host,
    ReplicaName,
    ReplicaUrl,
    Token,
    ValkeyUrl,
)

Policy = Literal["accept", "warn", "reject"]

#: Marks a setting whose value is never shown, and which can be read from a file of its own.
SECRET = {"secret": True}


class Section(Struct, frozen=True):
    """A group of settings."""

    def __repr__(self) -> str:
        """Show all settings but the secrets."""
        shown = [field.name for field in fields(type(self)) if not is_secret(field.type)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


def is_secret(annotation: Any) -> bool:
    """Whether a setting's type is marked as SECRET."""
    return any(meta.extra == SECRET for meta in getattr(annotation, "__metadata__", ()))


class UpstreamSettings(Section, frozen=True):
    """The FHIR server behind the proxy."""

    url: Annotated[BaseUrl, Meta(description="Base URL of the FHIR server")] = "http://127.0.0.1:8081/fhir"
    token: Annotated[
        Token | None,
        Meta(
            description="Service token for the proxy's own reads, such as standing orders; without it, the proxy uses the "
            "submitter's Authorization",
            extra=SECRET,
        ),
    ] = None
    connect_timeout: Annotated[
        float, Meta(ge=0.01, le=300, description="Seconds to wait for a connection before answering 503")
    ] = 5.0
    read_timeout: Annotated[
        float,
        Meta(ge=0.01, le=3600, description="Seconds to wait for data from the server before answering 504"),
    ] = 60.0
    retries: Annotated[
        int,
        Meta(
            ge=0,
            le=20,
            description="How often a chunk is sent again after 429, 5xx, reset or timeout; a submission gives up "
            "after 3 x (retries + 1) failures in a row",
        ),
    ] = 4
    send: Annotated[
        Literal["auto", "transaction", "batch", "single"],
        Meta(
            description="How entries are sent; `auto` uses the first of transaction, batch and single that the server's "
            "CapabilityStatement declares"
        ),
    ] = "auto"
    create: Annotated[
        Literal["auto", "conditional", "update", "search"],
        Meta(
            description="How each entry is created only once: by conditional create, by an update whose id is derived from the "
            "entry's identity, or by a search before the create; `auto` uses the first of these that the server's "
            "CapabilityStatement declares"
        ),
    ] = "auto"
    bundle_entries: Annotated[
        int,
        Meta(ge=0, le=10_000, description="Most entries that the server accepts in one Bundle; 0 if no limit is known"),
    ] = 0


class ListenSettings(Section, frozen=True):
    """Where the proxy listens."""

    host: Annotated[Host, Meta(description="Address of the public port")] = "0.0.0.0"
    port: Annotated[int, Meta(ge=0, le=65535, description="Public port; 0 takes a free one")] = 8080
    public_url: Annotated[
        BaseUrl, Meta(description="Base URL that submitters use; links and locations in responses point here")
    ] = "http://localhost:8080/fhir"
    ops_host: Annotated[Host, Meta(description="Address of the operations port")] = "0.0.0.0"
    ops_port: Annotated[
        int, Meta(ge=0, le=65535, description="Port of /metrics, /healthz and /readyz; never expose it publicly")
    ] = 9090
    connections: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Most connections to the public port; above it, one that waits for a request is closed, or else the new "
            "one gets 503; 0 takes 1024, or fewer if the process may not open enough files",
        ),
    ] = 0
    idle_timeout: Annotated[
        float,
        Meta(
            ge=0.1,
            le=86_400,
            description="Seconds after which a connection without a request is closed; longer than the load balancer's own",
        ),
    ] = 620.0
    client_timeout: Annotated[
        float,
        Meta(
            ge=0.1,
            le=3600,
            description="Seconds to wait for a client that has begun a request head, or that neither sends its body nor reads the "
            "response at 1 kB per second",
        ),
    ] = 60.0
    stop_timeout: Annotated[
        float, Meta(ge=0, le=3600, description="Seconds that a stopping proxy waits for requests in flight")
    ] = 30.0


class PolicySettings(Section, frozen=True):
    """What happens when a submission does not match its standing order.

    `accept` does nothing, `warn` adds an information issue to the response, and `reject` refuses the entry or submission.
    """

    no_order: Annotated[Policy, Meta(description="If the patient has no active order")] = "accept"
    incomplete: Annotated[
        Policy, Meta(description="If the submission does not have all the profiles of any one schedule")
    ] = "reject"
    unsolicited: Annotated[Policy, Meta(description="If no order asks for the entry's profile")] = "reject"
    outside_lookback: Annotated[Policy, Meta(description="If the entry is older than the order's lookback period")] = (
        "warn"
    )
    too_often: Annotated[
        Policy, Meta(description="If the patient's last submission is more recent than the order's period")
    ] = "warn"


class LimitSettings(Section, frozen=True):
    """What one submission may cost."""

    body_bytes: Annotated[
        int,
        Meta(ge=1024, le=4 * 2**30, description="Largest body of a submission in bytes, compressed or decompressed"),
    ] = 64 * 2**20
    entries: Annotated[int, Meta(ge=1, le=1_000_000, description="Most entries in a submission")] = 50_000
    atomic_entries: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Most entries in an atomic submission (a tagged `transaction`), which goes upstream as one Bundle",
        ),
    ] = 500
    depth: Annotated[int, Meta(ge=16, le=256, description="Deepest nesting of JSON or XML")] = 64
    elements: Annotated[
        int,
        Meta(
            ge=100,
            le=10_000_000,
            description="Most elements in one entry: values in its JSON, and tags and attributes in its narrative",
        ),
    ] = 20_000
    in_flight: Annotated[
        int, Meta(ge=1, le=10_000, description="Most submissions in progress; others get 503 with Retry-After")
    ] = 8
    seconds: Annotated[float, Meta(ge=1, le=86_400, description="Longest time for one submission, in seconds")] = 600.0


class ForwardSettings(Section, frozen=True):
    """How accepted entries go upstream."""

    chunk: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Most entries in one transaction; fewer while the server is slow or fails"),
    ] = 80
    concurrency: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Most transactions in flight; the proxy begins with 2 and adds more as long as the server does not slow "
            "down",
        ),
    ] = 8
    beside: Annotated[
        float,
        Meta(
            ge=0.1,
            le=64,
            description="Most transactions in flight while other requests stream through; 0.5 is one transaction for half of "
            "the time; raise it if the server has spare cores",
        ),
    ] = 0.5


class CacheSettings(Section, frozen=True):
    """What is cached; a cache only saves work."""

    orders_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds for which a patient's standing orders are cached, also that there are none",
        ),
    ] = 300.0
    orders: Annotated[int, Meta(ge=1, le=10_000_000, description="Most patients whose orders are cached")] = 10_000
    known_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=604_800,
            description="Seconds for which the location of a stored entry is cached; with 0 the proxy always asks "
            "the server",
        ),
    ] = 600.0
    known: Annotated[
        int,
        Meta(ge=1, le=100_000_000, description="Most stored entries whose location is cached, about 0.5 kB each"),
    ] = 200_000
    shared: Annotated[
        ValkeyUrl | None,
        Meta(
            description="URL of the Valkey or Redis that the replicas share: `redis://`, `rediss://` (TLS) or `unix://`; without "
            "it, each replica has its own cache",
            extra=SECRET,
        ),
    ] = None
    shared_timeout: Annotated[
        float,
        Meta(
            ge=0.01,
            le=5,
            description="Seconds to wait for the shared cache before going on without it",
        ),
    ] = 0.25


class JobSettings(Section, frozen=True):
    """Submissions with `Prefer: respond-async`, which are stored in a file and processed later."""

    path: Annotated[
        FilePath | None,
        Meta(
            description="SQLite file that stores submissions with `Prefer: respond-async` (jobs), on a volume of "
            "this replica alone; without it, they are answered like all others"
        ),
    ] = None
    at_once: Annotated[
        int,
        Meta(ge=1, le=1000, description="Most jobs in progress, in addition to the submissions of `limits.in_flight`"),
    ] = 2
    waiting: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Most unfinished jobs; other submissions get 503 with Retry-After"),
    ] = 100
    waiting_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=2**40,
            description="Most bytes of the bodies of unfinished jobs; other submissions get 503 with Retry-After",
        ),
    ] = 2**30
    patience: Annotated[
        float,
        Meta(ge=0, le=604_800, description="Seconds for which a job is retried while the server fails"),
    ] = 900.0
    kept_seconds: Annotated[float, Meta(ge=1, le=31_536_000, description="Seconds for which a result is available")] = (
        86_400.0
    )
    kept_bytes: Annotated[
        int, Meta(ge=1024, le=2**40, description="Most bytes of results; the oldest are deleted first")
    ] = 2**28
    replica: Annotated[
        ReplicaName | None,
        Meta(description="Name of this replica among several, ending in its number; it is part of status URLs"),
    ] = None
    peers: Annotated[
        ReplicaUrl | None,
        Meta(
            description="Public base URL of any replica as the other replicas reach it, with `{replica}` in place of its name; "
            "status requests are passed to the replica that has the job"
        ),
    ] = None


class Settings(Section, frozen=True):
    """All settings: those of the whole program, then the sections."""

    mode: Annotated[
        Literal["enforce", "observe"], Meta(description="`observe` judges and counts, but rejects nothing")
    ] = "enforce"
    detection: Annotated[
        Literal["tag", "content"],
        Meta(description="`content` also judges untagged Bundles and single resources with CGM data"),
    ] = "tag"
    allow: Annotated[
        tuple[Literal["Observation", "DiagnosticReport", "Device"], ...],
        Meta(min_length=1, description="Resource types that a submission may create"),
    ] = ("Observation", "DiagnosticReport", "Device")
    rules: Annotated[
        DirectoryPath | None,
        Meta(description="Directory of a hospital's own rules, which are added to the shipped ones"),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is logged")
    ] = "info"
    listen: ListenSettings = ListenSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    policies: PolicySettings = PolicySettings()
    limits: LimitSettings = LimitSettings()
    forward: ForwardSettings = ForwardSettings()
    cache: CacheSettings = CacheSettings()
    jobs: JobSettings = JobSettings()

    @property
    def bases(self) -> BaseUrls:
        """The public base URL and the upstream's, and the mapping between them."""
        return BaseUrls.of(self.listen.public_url, self.upstream.url)
