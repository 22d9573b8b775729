"""Settings: one frozen object, read once at the start from a YAML file and the environment.

This module is the only reader of the environment. Every field of `Settings` and of its sections is a key of the YAML file
(`section: {key: value}`) and an environment variable (`CGM_PROXY_SECTION_KEY`, for example `CGM_PROXY_UPSTREAM_URL`),
which wins over the file.
A secret can come from a file as well (`CGM_PROXY_UPSTREAM_TOKEN_FILE`). Whatever is unknown, out of range or at odds
with another setting stops the start, with all faults at once. The README's table is made from the fields' metadata.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import yaml

from cgm_proxy.settings.schema import MASK, PREFIX, Given, Key, SettingsError, keys_of, read, suggestion
from cgm_proxy.settings.sections import (
    CacheSettings,
    ForwardSettings,
    JobSettings,
    LimitSettings,
    ListenSettings,
    Policy,
    PolicySettings,
    UpstreamSettings,
    setting,
)
from cgm_proxy.settings.yaml_file import content, given_in, secret

__all__ = [
    "FACTS",
    "KEYS",
    "CacheSettings",
    "ForwardSettings",
    "JobSettings",
    "LimitSettings",
    "ListenSettings",
    "Policy",
    "PolicySettings",
    "Settings",
    "SettingsError",
    "UpstreamSettings",
    "load",
    "printable",
    "table",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; see each section."""

    mode: Literal["enforce", "observe"] = setting("enforce", "`observe` judges and counts, and rejects nothing")
    detection: Literal["tag", "content"] = setting(
        "tag", "`content` judges untagged Bundles and single CGM resources too"
    )
    allow: tuple[str, ...] = setting(
        ("Observation", "DiagnosticReport", "Device"),
        "Resource types that a submission may create: Observation, DiagnosticReport, Device or some of them",
        form="resource type",
    )
    rules: str | None = setting(None, "Directory of a hospital's own rules, added to the shipped ones", form="path")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Least severe log line written")
    listen: ListenSettings = field(default_factory=ListenSettings)
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    policies: PolicySettings = field(default_factory=PolicySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    forward: ForwardSettings = field(default_factory=ForwardSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    jobs: JobSettings = field(default_factory=JobSettings)


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


def _no_certificates(settings: Settings) -> bool:
    """Whether the shared memory's URL names a file that can't be read: the replicas would never share anything."""
    named = parse_qsl(urlsplit(settings.cache.shared or "").query)
    return not all(os.access(path, os.R_OK) for option, path in named if option.startswith("ssl_"))


FACTS = (
    Fact(
        ("cache.shared",),
        _no_certificates,
        "cache.shared names a file that can't be read; correct its ssl_ options, or leave them out",
    ),
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
    Fact(
        ("jobs.peers", "jobs.replica"),
        lambda settings: settings.jobs.peers is not None and settings.jobs.replica is None,
        "jobs.peers needs jobs.replica, by which this replica's own submissions are known; name it",
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
    return given_in(content("settings", path), str(path), KEYS) if path else []


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
        Given(files[name].name, secret(name, Path(environ[name])), name, text=True)
        if name in files
        else Given(variables[name].name, environ[name], name, text=True)
        for name in ours
    ]


def _unknown_variable(name: str, known: set[str]) -> str:
    if _SERVICE_LINK.fullmatch(name):
        return f"{name}: set by Kubernetes for a Service, and no setting; set enableServiceLinks: false in the pod"
    return f"{name}: unknown variable; {suggestion(name.upper(), {*known, SETTINGS_FILE})}"


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
        f"| `{key.name}` | `{key.variable}` | {key.shown_default} | {key.meaning} |".replace("\n", " ")
        for key in keys_of(settings_type)
    ]
    return "\n".join(["| setting | environment variable | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
