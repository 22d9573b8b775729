"""The settings' YAML file, read into values that remember their line.

Stricter than YAML: one document, each key once, text keys, no key that is no setting. What the YAML library says is
repeated without the words that it quotes from the file, for they may be a secret.
"""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from cgm_proxy.settings.schema import Given, SettingsError, suggestion


class Unreadable:
    """Stands for a value that YAML can't read; no setting accepts it."""

    def __repr__(self) -> str:
        return "nothing that YAML can read"


def given_in(text: str, file: str, known: Collection[str]) -> list[Given]:
    """Give what a YAML `text` says about the `known` dotted keys; `file` is its name for messages.

    Raises SettingsError with all unknown, repeated or unreadable keys.
    """
    faults: list[str] = []
    given: dict[str, Given] = {}
    for name, node, where in _leaves(_document(text, file), file, known, faults.append):
        if name not in known:
            faults.append(f'{where}: unknown key "{name}"; {suggestion(name, {*known, *_sections(known)})}')
        elif name in given:
            faults.append(f"{where}: {name} is here a second time (first: {given[name].where}); keep one")
        else:
            given[name] = Given(name, _value(node), where)
    if faults:
        raise SettingsError(*faults)
    return list(given.values())


def _document(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = re.sub(r"""(['"]).*\1""", "…", error.problem or "no reason given")
        raise SettingsError(f"{file}{line}: no valid YAML ({problem}); quote text with special characters") from None
    except yaml.YAMLError:
        raise SettingsError(f"{file}: no valid YAML (a control character); remove it") from None
    except RecursionError:
        raise SettingsError(f"{file}: nested too deeply; settings have sections and keys alone") from None


def _leaves(
    document: yaml.Node | None, file: str, known: Collection[str], fault: Callable[[str], None]
) -> Iterator[tuple[str, yaml.Node, str]]:
    """Give dotted name, value and place of each key; a section without keys is allowed, one without a mapping isn't."""
    for name, node, where in _pairs(document, "the file", file, fault):
        if name not in _sections(known):
            yield name, node, where
            continue
        for leaf, value, place in _pairs(node, f'section "{name}"', file, fault):
            yield f"{name}.{leaf}", value, place


def _sections(known: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in known if "." in name}


def _pairs(
    node: yaml.Node | None, what: str, file: str, fault: Callable[[str], None]
) -> Iterator[tuple[str, yaml.Node, str]]:
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        return
    if not isinstance(node, yaml.MappingNode):
        fault(f"{file}, line {node.start_mark.line + 1}: {what} has no keys; write lines of `key: value`")
        return
    for key, value in node.value:
        yield str(key.value), value, f"{file}, line {key.start_mark.line + 1}"


def _value(node: yaml.Node) -> Any:
    """Give a node's value; what YAML itself can't read (a tag, an impossible date) is refused as any wrong value is."""
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):
        return Unreadable()


def secret(where: str, path: Path) -> str:
    """Read a secret from its file; `where` says who named it."""
    found = content(where, path).strip()
    if not found:
        raise SettingsError(f"{where}: {path} is empty; write the secret into it, or unset the variable")
    return found


def content(where: str, path: Path) -> str:
    """Read a small text file; raises SettingsError where it can't be."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SettingsError(f"{where}: can't read {path}: {reason}; name a readable file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{where}: {path} is not UTF-8 text; save it as such") from None
