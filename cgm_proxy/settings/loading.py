"""Loading of the settings, once at the start, from a YAML file and the environment.

This is the only module that reads the environment. Each setting is a key of the YAML file (`section: {key: value}`) and an
environment variable (`CGM_PROXY_SECTION_KEY`, for example `CGM_PROXY_UPSTREAM_URL`), which overrides the file. A secret can also
come from a file of its own (`CGM_PROXY_UPSTREAM_TOKEN_FILE`). Unknown names, unacceptable values and settings that conflict
stop the start, with one message for all of them.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from cgm_proxy.settings.schema import MASK, PREFIX, Key, RawValue, SettingsError, keys_of, suggestion
from cgm_proxy.settings.sections import (
    CacheSettings,
    ForwardSettings,
    JobSettings,
    LimitSettings,
    ListenSettings,
    Policy,
    PolicySettings,
    Settings,
    UpstreamSettings,
)
from cgm_proxy.settings.yaml_file import content_of, secret, values_in

__all__ = [
    "CONFLICTS",
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

#: All settings by their dotted names.
KEYS: dict[str, Key] = {key.name: key for key in keys_of(Settings)}

#: The variable that names the file if the command line doesn't.
SETTINGS_FILE = f"{PREFIX}SETTINGS"

#: What Kubernetes sets in each pod for a Service named cgm-proxy (and Docker for a link of that name).
_SERVICE_LINK = re.compile(r"CGM_PROXY_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")


class Conflict(Struct, frozen=True):
    """Settings that conflict with one another or with the machine: which, whether they do, and the message."""

    keys: tuple[str, ...]
    found: Callable[[Settings], bool]
    message: str


def _loops(settings: Settings) -> bool:
    """Whether the upstream's URL leads back to the proxy: it is below the public URL, or has a port of this proxy."""
    upstream, public = urlsplit(settings.upstream.url), urlsplit(settings.listen.public_url)
    below = upstream.netloc.lower() == public.netloc.lower() and f"{upstream.path}/".startswith(f"{public.path}/")
    port = upstream.port or {"http": 80, "https": 443}[upstream.scheme]
    on_this_machine = upstream.hostname in {"localhost", "127.0.0.1", "::1"}
    return below or (on_this_machine and port in {settings.listen.port, settings.listen.ops_port})


def _rules_unreadable(settings: Settings) -> bool:
    """Whether `rules` is no readable directory: a proxy without these rules would accept too much."""
    return settings.rules is not None and not (Path(settings.rules).is_dir() and os.access(settings.rules, os.R_OK))


def _certificates_unreadable(settings: Settings) -> bool:
    """Whether the URL of the shared cache names an unreadable file: the replicas would silently share nothing."""
    options = parse_qsl(urlsplit(settings.cache.shared or "").query)
    return not all(
        Path(path).is_file() and os.access(path, os.R_OK) for option, path in options if option.startswith("ssl_")
    )


CONFLICTS = (
    Conflict(
        ("cache.shared",),
        _certificates_unreadable,
        "cache.shared names a file that can't be read; correct its ssl_ options, or remove them",
    ),
    Conflict(
        ("rules",),
        _rules_unreadable,
        "rules names no directory that can be read; correct the path, or remove the setting",
    ),
    Conflict(
        ("upstream.url", "listen.public_url", "listen.port", "listen.ops_port"),
        _loops,
        "upstream.url leads back to the proxy itself; write the URL of the FHIR server behind it",
    ),
    Conflict(
        ("listen.ops_port", "listen.port"),
        lambda settings: settings.listen.ops_port == settings.listen.port != 0,
        "listen.ops_port equals listen.port, which would make the metrics public; choose another port",
    ),
    Conflict(
        ("limits.atomic_entries", "limits.entries"),
        lambda settings: settings.limits.atomic_entries > settings.limits.entries,
        "limits.atomic_entries is above limits.entries and would never be reached; lower it",
    ),
    Conflict(
        ("upstream.read_timeout", "limits.seconds"),
        lambda settings: settings.upstream.read_timeout > settings.limits.seconds,
        "upstream.read_timeout is above limits.seconds and would never be reached; lower it",
    ),
    Conflict(
        ("jobs.waiting_bytes", "limits.body_bytes"),
        lambda settings: settings.jobs.path is not None and settings.jobs.waiting_bytes < settings.limits.body_bytes,
        "jobs.waiting_bytes is below limits.body_bytes, so that the largest submission would always be refused; raise it",
    ),
    Conflict(
        ("jobs.peers", "jobs.replica"),
        lambda settings: settings.jobs.peers is not None and settings.jobs.replica is None,
        "jobs.peers needs jobs.replica, which tells this replica's jobs from those of others; set it",
    ),
)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the YAML file `path` (default: `CGM_PROXY_SETTINGS`) and of `environ` (default: the process's).

    Raises SettingsError with all faults found: file and line or variable, setting, and what to do.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(SETTINGS_FILE)
    path = path or (Path(named) if named else None)
    in_file = values_in(content_of("settings", path), str(path), KEYS) if path else []
    raw_values = {raw.key: raw for raw in [*in_file, *_from_environ(environ)]}
    settings = Settings()
    faults: list[str] = []
    for name, raw in raw_values.items():
        try:
            settings = _with(settings, name, KEYS[name].read(raw))
        except SettingsError as error:
            faults += error.faults
    if not faults:
        for conflict in CONFLICTS:
            if conflict.found(settings):
                places = dict.fromkeys(raw_values[key].where for key in conflict.keys if key in raw_values)
                faults.append(f"{'; '.join(places)}: {conflict.message}")
    if faults:
        raise SettingsError(*faults)
    return settings


def _with(settings: Settings, name: str, value: Any) -> Settings:
    """Return the settings with one value changed."""
    section, _, leaf = name.rpartition(".")
    change = {section: replace(getattr(settings, section), **{leaf: value})} if section else {leaf: value}
    return replace(settings, **change)


def _from_environ(environ: Mapping[str, str]) -> list[RawValue]:
    """Return the values of our variables; an unknown one with our prefix is refused, in whatever case it is written."""
    variables = {key.variable: key for key in KEYS.values()}
    secret_files = {f"{name}_FILE": key for name, key in variables.items() if key.secret}
    ours = sorted(name for name in environ if name.upper().startswith(PREFIX) and name != SETTINGS_FILE)
    faults: list[str] = []
    for name in ours:
        if name in secret_files and secret_files[name].variable in environ:
            faults.append(f"{name}: {secret_files[name].variable} is set too; keep one of the two")
        elif name not in variables and name not in secret_files:
            faults.append(f"{name}: {_unknown_variable(name, {*variables, *secret_files, SETTINGS_FILE})}")
    if faults:
        raise SettingsError(*faults)
    return [
        RawValue(secret_files[name].name, secret(name, Path(environ[name])), name, text=True)
        if name in secret_files
        else RawValue(variables[name].name, environ[name], name, text=True)
        for name in ours
    ]


def _unknown_variable(name: str, known: set[str]) -> str:
    if _SERVICE_LINK.fullmatch(name):
        return "Kubernetes sets this variable for a Service, and it is no setting; set enableServiceLinks: false in the pod"
    return f"unknown variable; {suggestion(name.upper(), known)}"


def printable(settings: Settings) -> str:
    """Return the settings as YAML, with secrets masked.

    `load` can read it again, except that it refuses the mask of a secret.
    """
    shown = to_builtins(settings)
    for key in KEYS.values():
        section, _, leaf = key.name.rpartition(".")
        group = shown[section] if section else shown
        if key.secret and group[leaf] is not None:
            group[leaf] = MASK
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120)


def table() -> str:
    """Return the table of the documentation: setting, environment variable, default, meaning."""
    rows = [f"| `{key.name}` | `{key.variable}` | {key.shown_default} | {key.meaning} |" for key in KEYS.values()]
    return "\n".join(["| setting | environment variable | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
