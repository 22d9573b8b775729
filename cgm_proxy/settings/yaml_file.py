"""The settings' YAML file, read into values that know their line.

The reader in `core/codec/strict_yaml.py` refuses duplicate keys, tags and whatever is not YAML; this one also refuses a key that
is no setting. A message quotes nothing from the file that may be a secret.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cgm_proxy.core.codec.strict_yaml import Document, YamlError, document
from cgm_proxy.regular_files import read_regular
from cgm_proxy.settings.schema import Key, RawValue, SettingsError, suggestion

#: Deepest nesting of the file; settings need 3: sections, keys and a list.
MAX_DEPTH = 8

_QUOTED = re.compile(r"""(['"`]).*\1""", re.DOTALL)


def values_in(text: str, file: str, keys: Mapping[str, Key]) -> list[RawValue]:
    """Return the values that a YAML `text` has for settings; `file` is its name in messages.

    Raises SettingsError with all unknown, duplicate and unreadable keys.
    """
    sections = {name.partition(".")[0] for name in keys if "." in name}
    try:
        content = document(text, max_depth=MAX_DEPTH)
    except YamlError as error:
        place = f"{file}, line {error.line}" if error.line else file
        cure = "" if ";" in error.problem else "; write lines of `key: value`, and quote text with special characters"
        raise SettingsError(f"{place}: not valid YAML: {_QUOTED.sub('…', error.problem)}{cure}") from None
    faults: list[str] = []
    for fault in content.faults:
        name = ".".join(map(str, fault.path[:2]))
        public = name in sections or (name in keys and not keys[name].secret)
        problem = fault.problem if public else _QUOTED.sub("…", fault.problem)
        faults.append(f"{file}, line {fault.line}: {name + ': ' if name else ''}{problem}")
    values: dict[str, RawValue] = {}
    for path, value in _leaves(content, file, sections, faults):
        name, where = ".".join(path), f"{file}, line {content.line(*path)}"
        if name not in keys:
            faults.append(f'{where}: unknown key "{name}"; {suggestion(name, {*keys, *sections})}')
        elif name in values:  # once in its section and once as `section.key: value`
            faults.append(f"{where}: {name} is repeated (first: {values[name].where}); keep one")
        else:
            values[name] = RawValue(name, value, where)
    if faults:
        raise SettingsError(*faults)
    return list(values.values())


def _leaves(
    content: Document, file: str, sections: set[str], faults: list[str]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield path and value of each key, and add a fault for whatever should have keys and has none.

    An empty file or section is allowed.
    """
    if not isinstance(content.value, dict | None):
        faults.append(f"{file}, line {content.first_line}: the file has no keys; write lines of `key: value`")
        return
    for name, value in (content.value or {}).items():
        if name not in sections:
            yield (str(name),), value
        elif isinstance(value, dict):
            yield from (((name, str(key)), leaf) for key, leaf in value.items())
        elif value is not None:
            line = content.line(name)
            faults.append(f'{file}, line {line}: section "{name}" has no keys; write lines of `key: value`')


def secret(where: str, path: Path) -> str:
    """Return the secret in a file; `where` names the variable that names the file."""
    found = content_of(where, path).strip()
    if not found:
        raise SettingsError(f"{where}: {path} is empty; write the secret into it, or unset the variable")
    return found


def content_of(where: str, path: Path) -> str:
    """Return the text of a file; raise SettingsError if it can't be read."""
    try:
        return read_regular(path).decode()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SettingsError(f"{where}: can't read {path}: {reason}; name a readable file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{where}: {path} is not UTF-8 text; save it as UTF-8") from None
