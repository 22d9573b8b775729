"""Loading of settings: what is read, from where, and the exact message for each mistake."""

import ast
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.bad_settings import BAD_ENVIRONMENTS, BAD_FILES

import cgm_proxy
from cgm_proxy.settings.loading import (
    CONFLICTS,
    KEYS,
    LimitSettings,
    ListenSettings,
    Settings,
    UpstreamSettings,
    load,
    printable,
    table,
)
from cgm_proxy.settings.schema import MASK, Key, SettingsError

PACKAGE = Path(cgm_proxy.__file__).parent


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a settings file into the working directory, so that messages name it without a path."""
    monkeypatch.chdir(tmp_path)

    def written(text: str | bytes, name: str = "s.yaml") -> Path:
        path = Path(name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def faults(path: Path | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, environ)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return list(caught.value.faults)


def test_without_file_and_variables_settings_have_their_defaults():
    assert load(None, {}) == Settings()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "upstream:\nlisten:\n  # port: 80\n"])
def test_an_empty_file_or_section_changes_no_default(write, text):
    assert load(write(text), {}) == Settings()


FILE = """\
mode: observe
allow: [Observation]
rules: .
listen: {port: 8000, public_url: "https://fhir.example.org/r4/"}
upstream:
  url: http://[fd00::1]:8081
  connect_timeout: 2
"""


def test_each_kind_of_value_is_read_from_a_file(write):
    read = load(write(FILE), {})
    assert read == Settings(
        mode="observe",
        allow=("Observation",),
        rules=".",
        listen=ListenSettings(port=8000, public_url="https://fhir.example.org/r4"),
        upstream=UpstreamSettings(url="http://[fd00::1]:8081", connect_timeout=2.0),
    )
    assert isinstance(read.upstream.connect_timeout, float)


def test_each_kind_of_value_is_read_from_the_environment_which_wins(write):
    environ = {
        "CGM_PROXY_MODE": "enforce",
        "CGM_PROXY_ALLOW": "Observation, Device",
        "CGM_PROXY_RULES": "",
        "CGM_PROXY_LISTEN_PORT": "8001",
        "CGM_PROXY_UPSTREAM_CONNECT_TIMEOUT": "0.5",
        "PATH": "/bin",
    }
    read = load(write(FILE), environ)
    assert (read.mode, read.allow, read.rules) == ("enforce", ("Observation", "Device"), None)
    assert (read.listen.port, read.upstream.connect_timeout) == (8001, 0.5)
    assert read.listen.public_url == "https://fhir.example.org/r4"


def test_the_environment_names_the_file_unless_one_is_given(write):
    named = write("mode: observe\n")
    other = write("log_level: debug\n", "other.yaml")
    assert load(None, {"CGM_PROXY_SETTINGS": str(named)}) == Settings(mode="observe")
    assert load(other, {"CGM_PROXY_SETTINGS": str(named)}) == Settings(log_level="debug")
    assert load(None, {"CGM_PROXY_SETTINGS": ""}) == Settings()


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("CGM_PROXY_MODE", "observe")
    assert load() == Settings(mode="observe")


def test_a_secret_comes_from_a_file_without_its_line_break(write):
    token = write("s3cr3t\n", "token")
    assert load(None, {"CGM_PROXY_UPSTREAM_TOKEN_FILE": str(token)}).upstream.token == "s3cr3t"


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_mistake_in_the_file_is_named_with_file_line_key_and_cure(write, text, message):
    assert faults(write(text), {}) == [message]
    assert "s3cr3t" not in message


@pytest.mark.parametrize(("environ", "message"), BAD_ENVIRONMENTS)
def test_a_mistake_in_the_environment_is_named_with_variable_and_cure(write, environ, message):
    write("\n", "blank")
    write("s3cr3t\ns3cr3t\n", "two-lines")
    assert faults(None, environ) == [message]
    assert "s3cr3t" not in message


def test_all_mistakes_are_reported_at_once(write):
    path = write("mode: x\nlisten:\n  port: -1\n")
    assert [fault.partition(" is ")[0] for fault in faults(path, {"CGM_PROXY_ALLOW": "x"})] == [
        "s.yaml, line 1: mode",
        "s.yaml, line 3: listen.port",
        "CGM_PROXY_ALLOW: allow",
    ]


def test_the_environment_can_override_a_mistake_in_the_file(write):
    path = write(f"mode: x\nupstream: {{token: '{MASK}'}}\n")
    settings = load(path, {"CGM_PROXY_MODE": "observe", "CGM_PROXY_UPSTREAM_TOKEN": "s3cr3t"})
    assert settings == Settings(mode="observe", upstream=UpstreamSettings(token="s3cr3t"))


def test_every_conflict_of_settings_has_a_bad_case():
    messages = " ".join(message for _, message in BAD_FILES)
    assert [conflict.message for conflict in CONFLICTS if conflict.message not in messages] == []


def test_each_setting_has_limits_choices_or_a_form():
    assert [key.name for key in KEYS.values() if not (key.limits or key.choices or key.form)] == []
    assert len({key.variable for key in KEYS.values()}) == len(KEYS)


def test_the_defaults_are_values_that_would_be_accepted(write):
    assert load(write(printable(Settings())), {}) == Settings()


def values(key: Key) -> st.SearchStrategy:
    """Return a strategy for acceptable values of a key."""
    if key.kind is tuple:
        return st.lists(st.sampled_from(key.choices), min_size=1).map(tuple)
    if key.choices:
        return st.sampled_from(key.choices)
    if key.limits:
        return st.integers(*key.limits) if key.kind is int else st.floats(*key.limits)
    return {
        "address": st.sampled_from(["127.0.0.1", "::1", "on"]),
        "path": st.sampled_from([None, ".", "/"]),
        "replica": st.sampled_from([None, "cgm-proxy-0", "1"]),
        "replica url": st.sampled_from([None, "http://{replica}.ops.ns.svc:8080/fhir"]),
        "file": st.sampled_from([None, "/var/lib/jobs.sqlite", "jobs"]),
        "token": st.none(),
        "valkey url": st.none(),  # a secret is masked
        "url": st.sampled_from(["https://[::1]:1/a", "http://h", "https://h.example/a/b"]),
    }[key.form]


def any_settings() -> st.SearchStrategy[Settings]:
    """Return a strategy for settings without conflicts."""

    def built(chosen: dict) -> Settings:
        sections = {name.partition(".")[0] for name in chosen if "." in name}
        top = {name: value for name, value in chosen.items() if "." not in name}
        for section in sections:
            leaves = {k.partition(".")[2]: v for k, v in chosen.items() if k.startswith(f"{section}.")}
            top[section] = replace(getattr(Settings(), section), **leaves)
        return Settings(**top)

    every = st.fixed_dictionaries({name: values(key) for name, key in KEYS.items()})
    return every.map(built).filter(lambda settings: not any(conflict.found(settings) for conflict in CONFLICTS))


@hypothesis_settings(max_examples=60, deadline=None)
@given(any_settings())
def test_printed_settings_can_be_loaded_again(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("printed") / "s.yaml"
    path.write_text(printable(settings), "utf-8")
    assert load(path, {}) == settings


VALKEY_URLS = [
    "redis://valkey",
    "redis://valkey.fhir.svc:6379/2",
    "redis://:p%40ss@10.0.0.1:6379",
    "redis://cgm:p:ss@[fd00::1]:6379/0",
    "rediss://cgm@valkey/",
    "rediss://valkey:6380/0?ssl_ca_certs=s.yaml&ssl_certfile=s.yaml&ssl_keyfile=s.yaml",
    "unix:///run/valkey.sock",
    "unix://cgm:pw@/run/valkey.sock?db=3",
]


@pytest.mark.parametrize("url", VALKEY_URLS)
def test_the_url_of_a_shared_cache_is_used_unchanged(write, url):
    write("\n")
    assert load(None, {"CGM_PROXY_CACHE_SHARED": url}).cache.shared == url
    assert load(None, {"CGM_PROXY_CACHE_SHARED_FILE": str(write(f"{url}\n", "secret"))}).cache.shared == url
    assert url not in printable(load(None, {"CGM_PROXY_CACHE_SHARED": url}))


def test_secrets_are_masked_wherever_settings_are_shown():
    secret = load(None, {"CGM_PROXY_UPSTREAM_TOKEN": "s3cr3t"})
    assert "s3cr3t" not in printable(secret) + repr(secret)
    assert yaml.safe_load(printable(secret))["upstream"]["token"] == MASK
    assert yaml.safe_load(printable(Settings()))["upstream"]["token"] is None


def test_the_table_has_a_row_for_each_setting():
    rows = table().splitlines()
    assert rows[0] == "| setting | environment variable | default | meaning |"
    assert len(rows) == 2 + len(KEYS)
    assert "| `listen.port` | `CGM_PROXY_LISTEN_PORT` | `8080` | Public port; 0 takes a free one (0 to 65535) |" in rows
    assert (
        "| `mode` | `CGM_PROXY_MODE` | `enforce` | `observe` judges and counts, but rejects nothing"
        " (`enforce`, `observe`) |" in rows
    )
    assert "also from a file named by `CGM_PROXY_UPSTREAM_TOKEN_FILE`" in table()


def test_only_the_settings_read_the_environment():
    readers = {"environ", "environb", "getenv", "getenvb"}
    reading = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in readers
    }
    assert reading == {"settings/loading.py"}


def test_limits_of_a_submission_can_be_raised_for_ninety_days_at_a_minute():
    assert load(
        None, {"CGM_PROXY_LIMITS_BODY_BYTES": str(107 * 2**20), "CGM_PROXY_LIMITS_ENTRIES": "129600"}
    ).limits == (replace(LimitSettings(), body_bytes=107 * 2**20, entries=129_600))
