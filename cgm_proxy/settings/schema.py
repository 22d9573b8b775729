"""What one setting may be, and the message for a value that it may not be.

A `Key` describes one field of the structs in `sections.py`. msgspec checks values by the field's type; the message names the
place, the setting, what was found and what is expected. A secret is never shown, nor is a part of a URL that may hold one.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from cgm_proxy.settings.sections import is_secret

#: Printed instead of a secret; never accepted as a secret.
MASK = "********"
#: Prefix of the environment variables.
PREFIX = "CGM_PROXY_"
#: The page that lists all settings.
PAGE = "docs/settings.md"
#: Most names that a message lists; if there are more, it refers to PAGE.
MAX_LISTED = 12
#: Longest value that a message shows (characters).
MAX_SHOWN = 60

#: The parts of a URL that may hold a secret: user information, and everything after ? or #.
_URL_SECRETS = re.compile(r"(?<=//)[^/?#]*(?=@)|(?<=[?#]).+")


class SettingsError(Exception):
    """The settings can't be used; each of `faults` names file and line or variable, setting, and what to do."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class RawValue(Struct, frozen=True):
    """A value that the file or the environment has for the setting `key`, before it is checked.

    `where` is "FILE, line N" or a variable's name. `text` is true for the environment, where every value is text.
    """

    key: str
    value: Any
    where: str
    text: bool = False


class Key(Struct, frozen=True):
    """One setting: its dotted `name`, the `annotation` by which msgspec checks values, and what the annotation says."""

    name: str
    annotation: Any
    default: Any
    description: str
    kind: type
    expects: str
    choices: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    form: str | None = None
    normalize: Callable[[str], str] | None = None
    optional: bool = False
    secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.replace(".", "_").upper()

    @property
    def shown_default(self) -> str:
        """The default in Markdown."""
        if self.default is None:
            return "none"
        return f"`{','.join(self.default) if self.kind is tuple else self.default}`"

    @property
    def meaning(self) -> str:
        """The description in Markdown, with choices or limits, and whether it is a secret."""
        values = ""
        if self.limits:
            values = " ({} to {})".format(*self.limits)
        elif self.choices:
            values = f" ({', '.join(f'`{choice}`' for choice in self.choices)})"
        secret = f"; secret, also from a file named by `{self.variable}_FILE`" if self.secret else ""
        return self.description + values + secret

    def read(self, raw: RawValue) -> Any:
        """Return the value of the setting; raise SettingsError if it is not acceptable."""
        value = self._from_text(raw.value) if raw.text else raw.value
        if self.optional and value in (None, ""):
            return None
        if self.secret and value == MASK:
            raise SettingsError(f"{raw.where}: {self.name} is the mask that is printed for a secret; write the secret")
        try:
            value = msgspec.convert(value, self.annotation)
            return self.normalize(value) if self.normalize else value
        except (msgspec.ValidationError, ValueError):
            raise SettingsError(f"{raw.where}: {self.name} {self._shown(raw.value)}; write {self.expects}") from None

    def _from_text(self, text: str) -> Any:
        """Return what YAML would have read from the text of a variable."""
        try:
            if self.kind in (int, float):
                return self.kind(text)
        except ValueError:
            return text
        return [part.strip() for part in text.split(",")] if self.kind is tuple else text

    def _shown(self, value: Any) -> str:
        if self.secret:
            return "has a value that can't be used (not shown: it is a secret)"
        if value is None:
            return "is empty"
        if isinstance(value, str):
            value = _URL_SECRETS.sub("***", value)
        shown = json.dumps(value, ensure_ascii=False)
        return f"is {shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + '…'}"


def keys_of(settings: type[Struct], prefix: str = "") -> Iterator[Key]:
    """Yield each setting of a struct; its fields that are structs are sections."""
    for field in msgspec.structs.fields(settings):
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from keys_of(field.type, f"{field.name}.")
        else:
            yield _key(prefix + field.name, field)


def _key(name: str, field: FieldInfo) -> Key:
    """Return the setting of a field: `Annotated` with limits or a format first, and with the description last."""
    hint, metas = field.type.__origin__, field.type.__metadata__
    optional = get_origin(hint) is Union
    if optional:
        text = get_args(hint)[0]
        hint, metas = text.__origin__, (*text.__metadata__, *metas)
    constraint, kind, choices = metas[0], get_origin(hint) or hint, get_args(hint)
    described: dict[str, Any]
    if kind in (int, float):
        expects = f"a {'whole ' if kind is int else ''}number from {constraint.ge} to {constraint.le}"
        described = {"expects": expects, "limits": (constraint.ge, constraint.le)}
    elif kind is Literal:
        kind, described = str, {"expects": alternatives(choices), "choices": choices}
    elif kind is tuple:
        choices = get_args(choices[0])
        expects = f"one or more of {', '.join(choices)}, as a list (in a variable: separated by commas)"
        described = {"expects": expects, "choices": choices}
    else:
        described = {"form": constraint.title, **constraint.extra}
    return Key(
        name=name,
        annotation=field.type,
        default=field.default,
        description=metas[-1].description,
        kind=kind,
        optional=optional,
        secret=is_secret(field.type),
        **described,
    )


def alternatives(choices: Iterable[str]) -> str:
    """Return the choices as part of a sentence: `a, b or c`."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Return what to do about an unknown name: the nearest known one, or the names of its section."""
    section, leaf = _parts(wrong)
    in_section = {_parts(name)[1]: name for name in sorted(known) if _parts(name)[0] == section}
    same_leaf = [name for name in sorted(known) if _parts(name)[1] == leaf]
    near = same_leaf or [in_section[each] for each in difflib.get_close_matches(leaf, in_section, 1)]
    if near:
        return f'did you mean "{near[0]}"?'
    if len(in_section) <= MAX_LISTED:
        return f"known are {alternatives(in_section.values())}"
    return f"{PAGE} lists all names"


def _parts(name: str) -> tuple[str, str]:
    """Return section and key of `section.key`, or prefix and rest of `CGM_PROXY_KEY`."""
    section, _, leaf = name.rpartition(PREFIX if name.startswith(PREFIX) else ".")
    return section, leaf
