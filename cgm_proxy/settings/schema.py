"""What one setting may be: its type, limits and form, and the words for what is wrong with it.

`settings.py` says which settings there are; a field's metadata there becomes a `Key` here. A value is shown in a
message, so that the reader finds it, unless it is a secret or a part of a URL that may hold one.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

#: What is printed for a secret, and never taken as one.
MASK = "********"
#: What our environment variables begin with.
PREFIX = "CGM_PROXY_"
#: Known names that a message lists, before it points to the README.
LISTED = 12
#: What a refused value is cut to in a message (characters).
SHOWN = 60


class SettingsError(Exception):
    """The settings can't be used; each of `faults` names file and line or variable, key, and cure."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Form:
    """What a text must look like: `pattern` (whole text), and the words for it."""

    pattern: str
    wants: str

    def fits(self, text: str) -> bool:
        """Whether `text` has this form."""
        return re.fullmatch(self.pattern, text) is not None


_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+"
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_USER = r"(?:[^\s/?#@:]*(?::[^\s/?#@]*)?@)?"
_FILE = r"ssl_(?:ca_certs|certfile|keyfile)=[^&#\s]+"
FORMS = {
    "address": Form(r"[A-Za-z0-9._:-]+", "a host name or IP address, without scheme, port or brackets"),
    "path": Form(r"[^\x00]+", "the path of a directory"),
    "file": Form(r"[^\x00]+", "the path of a file"),
    "replica": Form(r"[a-z0-9-]{0,58}[0-9]", "a name of small letters, digits and hyphens that ends in a number"),
    "replica url": Form(
        r"https?://[A-Za-z0-9._:-]*\{replica\}[A-Za-z0-9._:-]*(?:/[A-Za-z0-9._~-]+)*",
        "an http or https URL with {replica} in its host, or port, and a plain path",
    ),
    "resource type": Form(
        "Observation|DiagnosticReport|Device", "some of Observation, DiagnosticReport and Device, as a list"
    ),
    "token": Form(r"[\x21-\x7e]+", 'the token alone, without "Bearer", blanks or line breaks'),
    # As redis-py reads it, without the options that would weaken something.
    "valkey url": Form(
        rf"redis://{_USER}{_HOST}(?:/[0-9]{{0,5}})?|unix://{_USER}/[^?#\s]+(?:\?db=[0-9]{{1,5}})?"
        rf"|rediss://{_USER}{_HOST}(?:/[0-9]{{0,5}})?(?:\?{_FILE}(?:&{_FILE})*)?",
        "a URL like redis://USER:PASSWORD@HOST:6379/0, unix://:PASSWORD@/PATH?db=0, or rediss://HOST for TLS, there with the "
        "options ssl_ca_certs, ssl_certfile and ssl_keyfile if need be; special characters of the password %-escaped",
    ),
    # RFC 3986, less what a base URL must not have: user, query, fragment, escapes, empty and dot segments.
    "url": Form(
        rf"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?(?:/{_SEGMENT})*/?",
        "an http or https URL with a host and a plain path, without user, query, fragment and %-escapes",
    ),
}


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody gave it: `where` is "FILE, line N" or the variable's name; `text` if still to be read."""

    key: str
    value: Any
    where: str
    text: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted `name`, `kind` (int, float, str, tuple or Literal), `choices`, default and limits."""

    name: str
    kind: Any
    default: Any
    doc: str
    choices: tuple[str, ...] = ()
    optional: bool = False
    at_least: float | None = None
    at_most: float | None = None
    form: str | None = None
    secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.replace(".", "_").upper()

    @property
    def wants(self) -> str:
        """What to write, in words."""
        if self.form:
            return FORMS[self.form].wants
        if self.choices:
            return alternatives(self.choices)
        words = {int: "a whole number", float: "a number", str: "text"}[self.kind]
        return f"{words} from {self.limits}" if self.limits else words

    @property
    def limits(self) -> str:
        """The least and the greatest number, or nothing."""
        return "" if self.at_least is None else f"{self.at_least} to {self.at_most}"

    @property
    def shown_default(self) -> str:
        """The default, for the README."""
        if self.default is None:
            return "none"
        return f"`{','.join(self.default) if self.kind is tuple else self.default}`"

    @property
    def meaning(self) -> str:
        """The doc, for the README, then what may be written, where limits or choices say it."""
        choices = ", ".join(f"`{choice}`" for choice in self.choices)
        limits = f" ({choices or self.limits})" if choices or self.limits else ""
        secret = f"; secret, also from a file named by `{self.variable}_FILE`" if self.secret else ""
        return self.doc + limits + secret


def alternatives(choices: Iterable[str]) -> str:
    """Join choices for a sentence: `a, b or c`."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def keys_of(settings_type: type, prefix: str = "") -> Iterator[Key]:
    """Give each setting of a settings dataclass; its fields that are dataclasses are sections."""
    hints = get_type_hints(settings_type)
    for field in fields(settings_type):
        hint = hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from keys_of(hint, f"{field.name}.")
        else:
            yield _key_of(prefix + field.name, hint, field.default, dict(field.metadata))


def _key_of(name: str, hint: Any, default: Any, metadata: dict[str, Any]) -> Key:
    optional = get_origin(hint) is UnionType
    plain = next(each for each in get_args(hint) if each is not type(None)) if optional else hint
    kind = get_origin(plain) or plain
    choices = get_args(plain) if kind is Literal else ()
    if default is MISSING:
        raise TypeError(f"{name} has no default")
    return Key(name, kind, default, choices=choices, optional=optional, **metadata)


def read(key: Key, given: Given) -> Any:
    """Give the value for `key`, or raise SettingsError with what is wrong and what to write instead."""
    value = _from_text(key.kind, given.value) if given.text else given.value
    if key.optional and (value is None or value == ""):
        return None
    if key.secret and value == MASK:
        raise SettingsError(f"{given.where}: {key.name} is the mask that is printed for a secret; write the secret")
    if not _KINDS[key.kind](value) or not _within(key, value):
        raise SettingsError(f"{given.where}: {key.name} {_shown(key, given.value)}; write {key.wants}")
    return _NORMAL.get(key.form or key.kind, lambda same: same)(value)


#: How a text, as the environment has it, becomes what YAML would have given.
_TEXTS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    tuple: lambda text: [part.strip() for part in text.split(",")],
}
#: Whether a value is of a kind; bool is an int for Python alone.
_KINDS: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    tuple: lambda value: isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value),
    Literal: lambda value: isinstance(value, str),
}
#: How an accepted value is kept.
_NORMAL: dict[Any, Callable[[Any], Any]] = {
    float: float,
    "resource type": tuple,
    "url": lambda text: text.rstrip("/"),
}


def _from_text(kind: Any, text: str) -> Any:
    try:
        return _TEXTS.get(kind, str)(text)
    except ValueError:
        return text


def _within(key: Key, value: Any) -> bool:
    """Whether a value of the right kind is among the choices, between the limits, and of the form."""
    if key.choices:
        return value in key.choices
    if key.at_least is not None and key.at_most is not None:
        return bool(key.at_least <= value <= key.at_most)  # false for NaN
    texts = value if isinstance(value, list) else [value]
    return all(FORMS[key.form].fits(text) for text in texts) and _port_fits(key, value) if key.form else True


def _port_fits(key: Key, url: Any) -> bool:
    if key.form not in {"url", "valkey url"}:
        return True
    try:
        return bool(urlsplit(url).port != 0)
    except ValueError:
        return False


#: The parts of a URL that may hold a secret: user information, and all after ? or #.
_URL_SECRETS = re.compile(r"(?<=//)[^/?#]*(?=@)|(?<=[?#]).+")


def _shown(key: Key, value: Any) -> str:
    """Say what was found: nothing of a secret, nothing of a URL's user, query and fragment."""
    if key.secret:
        return "has a value that can't be used (not shown: it is a secret)"
    if value is None:
        return "is empty"
    found = f'"{_URL_SECRETS.sub("***", value)}"' if isinstance(value, str) else repr(value)
    return f"is {found if len(found) <= SHOWN else found[:SHOWN] + '…'}"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Give a cure for a misspelt or misplaced name: the nearest known one, or those of its section."""
    section, leaf = _parts(wrong)
    beside = {_parts(name)[1]: name for name in sorted(known) if _parts(name)[0] == section}
    elsewhere = [name for name in sorted(known) if _parts(name)[1] == leaf]
    near = elsewhere or [beside[each] for each in difflib.get_close_matches(leaf, beside, 1)]
    if near:
        return f'did you mean "{near[0]}"?'
    return f"known are {alternatives(beside.values())}" if len(beside) <= LISTED else "the README lists the known ones"


def _parts(name: str) -> tuple[str, str]:
    """Split `section.key` or `CGM_PROXY_KEY` into what names share and what tells them apart."""
    mark = PREFIX if name.startswith(PREFIX) else "."
    section, _, leaf = name.rpartition(mark)
    return section, leaf
