"""Settings: one frozen object, read once at the start from a YAML file and the environment.

This module is the only reader of the environment. Every field below is a key of the YAML file (`section: {key: value}`)
and an environment variable (`CGM_PROXY_SECTION_KEY`, for example `CGM_PROXY_UPSTREAM_URL`), which wins over the file.
A secret can come from a file as well (`CGM_PROXY_UPSTREAM_TOKEN_FILE`). Whatever is unknown, out of range or at odds
with another setting stops the start, with all faults at once. The README's table is made from the fields' metadata.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from cgm_proxy.settings_file import given_in
from cgm_proxy.settings_keys import MASK, PREFIX, Given, Key, SettingsError, keys_of, read, suggestion

__all__ = ["FACTS", "KEYS", "Settings", "SettingsError", "load", "printable", "table"]

Policy = Literal["accept", "warn", "reject"]


def _key(default: Any, doc: str, at_least: float | None = None, at_most: float | None = None, **more: Any) -> Any:
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most, **more}
    return field(default=default, metadata=metadata, repr=not more.get("secret"))


@dataclass(frozen=True, slots=True)
class Upstream:
    """The FHIR server behind the proxy."""

    url: str = _key("http://127.0.0.1:8081/fhir", "Base URL of the FHIR server", form="url")
    token: str | None = _key(
        None,
        "Service token for the proxy's own reads (standing orders); without it the submitter's Authorization is used",
        secret=True,
        form="token",
    )
    connect_timeout: float = _key(5.0, "Seconds to connect before 503", 0.01, 300)
    read_timeout: float = _key(60.0, "Seconds of silence before 504", 0.01, 3600)
    retries: int = _key(4, "How often a chunk is sent again after 5xx, 409, reset or timeout", 0, 20)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the proxy listens."""

    host: str = _key("0.0.0.0", "Address of the public port", form="address")
    port: int = _key(8080, "Public port; 0 takes a free one", 0, 65535)
    public_url: str = _key(
        "http://localhost:8080/fhir",
        "Base URL that submitters use; links and locations in answers point here",
        form="url",
    )
    ops_host: str = _key("0.0.0.0", "Address of the operations port", form="address")
    ops_port: int = _key(9090, "Port of /metrics, /healthz and /readyz; never expose it publicly", 0, 65535)
    stop_timeout: float = _key(30.0, "Seconds that a stopping proxy gives to what is in flight", 0, 3600)


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

    body_bytes: int = _key(64 * 2**20, "Largest body of a submission, compressed or inflated (bytes)", 1024, 4 * 2**30)
    entries: int = _key(50_000, "Most entries in a submission", 1, 1_000_000)
    atomic_entries: int = _key(
        500, "Most entries in an atomic (tagged `transaction`) submission, which goes upstream in one piece", 1, 10_000
    )
    depth: int = _key(64, "Deepest nesting of JSON or XML", 16, 256)
    in_flight: int = _key(8, "Submissions worked on at once, before 503 with Retry-After", 1, 10_000)
    seconds: float = _key(600.0, "Longest time for one submission (seconds)", 1, 86_400)


@dataclass(frozen=True, slots=True)
class Forward:
    """How accepted entries go upstream."""

    chunk: int = _key(100, "Entries in one transaction, at most; fewer while the upstream is slow or fails", 1, 10_000)
    concurrency: int = _key(
        8,
        "Transactions under way at once, at most: it begins with 2, and more while that costs the upstream no time",
        1,
        64,
    )


@dataclass(frozen=True, slots=True)
class Cache:
    """What is remembered; caches only save work."""

    orders_seconds: float = _key(
        300.0, "How long a patient's standing orders are remembered, also that there are none (seconds)", 0, 86_400
    )
    orders: int = _key(10_000, "Patients whose orders are remembered", 1, 10_000_000)
    known_seconds: float = _key(
        600.0,
        "How long the location of a stored entry is remembered (seconds); 0 asks upstream every time",
        0,
        604_800,
    )
    known: int = _key(200_000, "Stored entries that are remembered, about 0.5 kB each", 1, 100_000_000)
    shared: str | None = _key(
        None,
        "URL of the Valkey or Redis that replicas share: `redis://`, `rediss://` (TLS) or `unix://`; without it each replica "
        "remembers for itself",
        secret=True,
        form="valkey url",
    )
    shared_timeout: float = _key(
        0.25, "Seconds to wait for an answer of the shared memory, before it is done without", 0.01, 5
    )


@dataclass(frozen=True, slots=True)
class Jobs:
    """Submissions with `Prefer: respond-async`, which are kept in a file and answered later."""

    path: str | None = _key(
        None,
        "SQLite file on a volume, of this replica alone, that keeps submissions with `Prefer: respond-async`; without it"
        " they are answered as any other",
        form="file",
    )
    at_once: int = _key(2, "Kept submissions worked on at once, beside `limits.in_flight` others", 1, 1000)
    waiting: int = _key(100, "Most submissions that are kept and not done, before 503 with Retry-After", 1, 1_000_000)
    waiting_bytes: int = _key(2**30, "Most bytes of their bodies, before 503 with Retry-After", 1024, 2**40)
    patience: float = _key(
        900.0, "How long a kept submission is tried again while the upstream fails (seconds)", 0, 604_800
    )
    kept_seconds: float = _key(86_400.0, "How long a result is kept (seconds)", 1, 31_536_000)
    kept_bytes: int = _key(2**28, "Most bytes of results; the oldest make room for new ones", 1024, 2**40)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; see each section."""

    mode: Literal["enforce", "observe"] = _key("enforce", "`observe` judges and counts, and rejects nothing")
    detection: Literal["tag", "content"] = _key("tag", "`content` judges untagged Bundles and single CGM resources too")
    allow: tuple[str, ...] = _key(
        ("Observation", "DiagnosticReport", "Device"),
        "Resource types that a submission may create: Observation, DiagnosticReport, Device or some of them",
        form="resource type",
    )
    rules: str | None = _key(None, "Directory of a hospital's own rules, added to the shipped ones", form="path")
    log_level: Literal["debug", "info", "warning", "error"] = _key("info", "Least severe log line written")
    listen: Listen = field(default_factory=Listen)
    upstream: Upstream = field(default_factory=Upstream)
    policies: Policies = field(default_factory=Policies)
    limits: Limits = field(default_factory=Limits)
    forward: Forward = field(default_factory=Forward)
    cache: Cache = field(default_factory=Cache)
    jobs: Jobs = field(default_factory=Jobs)


@dataclass(frozen=True, slots=True)
class Fact:
    """What settings must agree on, among them or with the machine: whether it is `broken`, what, and the cure."""

    keys: tuple[str, ...]
    broken: Callable[[Settings], bool]
    text: str


def _loops(settings: Settings) -> bool:
    """Whether the upstream's URL leads back to the proxy: below its public URL, or to its port on this machine."""
    upstream, public = urlsplit(settings.upstream.url), urlsplit(settings.listen.public_url)
    below = upstream.netloc.lower() == public.netloc.lower() and f"{upstream.path}/".startswith(f"{public.path}/")
    port = upstream.port or {"http": 80, "https": 443}[upstream.scheme]
    here = upstream.hostname in {"localhost", "127.0.0.1", "::1"}
    return below or (here and port in {settings.listen.port, settings.listen.ops_port})


def _no_rules(settings: Settings) -> bool:
    """Whether a directory of rules is named that can't be read: a proxy without them would accept too much."""
    return settings.rules is not None and not (Path(settings.rules).is_dir() and os.access(settings.rules, os.R_OK))


FACTS = (
    Fact(("rules",), _no_rules, "rules names no directory that can be read; correct the path, or leave it out"),
    Fact(
        ("upstream.url", "listen.public_url", "listen.port", "listen.ops_port"),
        _loops,
        "upstream.url leads back to the proxy itself; write the URL of the FHIR server behind it",
    ),
    Fact(
        ("listen.ops_port", "listen.port"),
        lambda settings: settings.listen.ops_port == settings.listen.port != 0,
        "listen.ops_port equals listen.port, which would make the metrics public; choose another port",
    ),
    Fact(
        ("limits.atomic_entries", "limits.entries"),
        lambda settings: settings.limits.atomic_entries > settings.limits.entries,
        "limits.atomic_entries is above limits.entries and would never be reached; lower it",
    ),
    Fact(
        ("upstream.read_timeout", "limits.seconds"),
        lambda settings: settings.upstream.read_timeout > settings.limits.seconds,
        "upstream.read_timeout is above limits.seconds and would never be reached; lower it",
    ),
    Fact(
        ("jobs.waiting_bytes", "limits.body_bytes"),
        lambda settings: settings.jobs.path is not None and settings.jobs.waiting_bytes < settings.limits.body_bytes,
        "jobs.waiting_bytes is below limits.body_bytes: the largest submission would never be kept; raise it",
    ),
)

KEYS: dict[str, Key] = {key.name: key for key in keys_of(Settings)}

#: Names the file, when the command line doesn't.
SETTINGS_FILE = f"{PREFIX}SETTINGS"

#: What Kubernetes sets in each pod for a Service that is named cgm-proxy (and Docker for a link of that name).
_SERVICE_LINK = re.compile(r"CGM_PROXY_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the YAML file `path` (else `CGM_PROXY_SETTINGS`) and `environ` (else the process's own).

    Raises SettingsError with all faults found: file and line or variable, key, and cure.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(SETTINGS_FILE)
    path = path or (Path(named) if named else None)
    given = {each.key: each for each in [*_from_file(path), *_from_environ(environ)]}
    settings = _settings(_values(given))
    _raise_if(_disagreements(settings, given))
    return settings


def _raise_if(faults: list[str]) -> None:
    if faults:
        raise SettingsError(*faults)


def _values(given: Mapping[str, Given]) -> dict[str, Any]:
    """Read each given value; raise SettingsError with the faults of all that are wrong."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, each in given.items():
        try:
            values[name] = read(KEYS[name], each)
        except SettingsError as error:
            faults += error.faults
    _raise_if(faults)
    return values


def _settings(values: Mapping[str, Any]) -> Settings:
    """Put values by dotted name into the sections that they belong to."""
    settings = Settings()
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        changed = {section: replace(getattr(settings, section), **{leaf: value})} if section else {leaf: value}
        settings = replace(settings, **changed)
    return settings


def _disagreements(settings: Settings, given: Mapping[str, Given]) -> list[str]:
    return [
        "; ".join(dict.fromkeys(given[key].where for key in fact.keys if key in given)) + f": {fact.text}"
        for fact in FACTS
        if fact.broken(settings)
    ]


def _from_file(path: Path | None) -> list[Given]:
    return given_in(_content("settings", path), str(path), KEYS) if path else []


def _from_environ(environ: Mapping[str, str]) -> list[Given]:
    """Give what the variables say; an unknown one with our prefix is refused, whatever its case."""
    variables = {key.variable: key for key in KEYS.values()}
    files = {f"{name}_FILE": key for name, key in variables.items() if key.secret}
    ours = sorted(name for name in environ if name.upper().startswith(PREFIX) and name != SETTINGS_FILE)
    known = {*variables, *files}
    _raise_if([_unknown_variable(name, known) for name in ours if name not in known])
    _raise_if(
        [
            f"{name}: {files[name].variable} is set too; keep one of the two"
            for name in ours
            if name in files and files[name].variable in environ
        ]
    )
    return [
        Given(files[name].name, _secret(name, Path(environ[name])), name, text=True)
        if name in files
        else Given(variables[name].name, environ[name], name, text=True)
        for name in ours
    ]


def _unknown_variable(name: str, known: set[str]) -> str:
    if _SERVICE_LINK.fullmatch(name):
        return f"{name}: set by Kubernetes for a Service, and no setting; set enableServiceLinks: false in the pod"
    return f"{name}: unknown variable; {suggestion(name.upper(), {*known, SETTINGS_FILE})}"


def _secret(where: str, path: Path) -> str:
    secret = _content(where, path).strip()
    if not secret:
        raise SettingsError(f"{where}: {path} is empty; write the secret into it, or unset the variable")
    return secret


def _content(where: str, path: Path) -> str:
    """Read a small text file; `where` says who named it."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SettingsError(f"{where}: can't read {path}: {reason}; name a readable file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{where}: {path} is not UTF-8 text; save it as such") from None


def printable(settings: Settings) -> str:
    """Give the settings as YAML that `load` reads back, secrets masked; a mask that is read back is refused."""
    shown = asdict(settings)
    for key in KEYS.values():
        section, _, leaf = key.name.rpartition(".")
        place = shown[section] if section else shown
        if key.secret and place[leaf] is not None:
            place[leaf] = MASK
        elif key.kind is tuple:
            place[leaf] = list(place[leaf])
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120)


def table(settings_type: type = Settings) -> str:
    """Give the README's table: setting, environment variable, default, meaning."""
    rows = [
        f"| `{key.name}` | `{key.variable}` | {_default(key)} | {_meaning(key)} |".replace("\n", " ")
        for key in keys_of(settings_type)
    ]
    return "\n".join(["| setting | environment variable | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _default(key: Key) -> str:
    if key.default is None:
        return "none"
    return f"`{','.join(key.default) if key.kind is tuple else key.default}`"


def _meaning(key: Key) -> str:
    """Give a key's doc, then what may be written, where limits or choices say it."""
    choices = ", ".join(f"`{choice}`" for choice in key.choices)
    limits = f" ({choices or key.limits})" if choices or key.limits else ""
    secret = f"; secret, also from a file named by `{key.variable}_FILE`" if key.secret else ""
    return key.doc + limits + secret
