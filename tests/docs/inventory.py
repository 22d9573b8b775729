"""What a user of a release may rely on: metrics, settings, command-line options, rule ids and log events.

`python tests/docs/inventory.py TREE` writes the inventory of a source tree as JSON. `inventory-0.1.0.json` is that of the tree in
which all modules still lay flat in one package; `test_inventory.py` compares it with today's.
"""

import argparse
import ast
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

#: By section, then by name: the words that a user may rely on, such as labels or a default.
Inventory = dict[str, dict[str, str]]

#: The form of rule ids in the code; the ids of rules in files are read from the files.
RULE_ID = re.compile(
    r"(allow|async|atomic|body|bundle|condition|entry|fate|group|header|identity|json|malformed|order|path|profile|r4|reference|subject|"
    r"turn|unknown|upstream|xml)(-[a-z0-9]+)+|busy|content-encoding|content-type|no-upgrade|transfer-encoding|unreadable|"
    r"too-(deep|large|many-entries)"
)

#: A row of a generated table: the cells of `| a | b | c |`.
ROW = re.compile(r"^\| (.*) \|$", re.MULTILINE)


def inventory(tree: Path) -> Inventory:
    """Return the inventory of a source tree, which must be first on `sys.path`."""
    return {
        "metrics": {name: labels for name, labels, _ in _table(tree, "metrics")},
        "settings": {name: f"{variable} {default}" for name, variable, default, _ in _table(tree, "settings")},
        "options": dict(_options(importlib.import_module("cgm_proxy.cli").parser())),
        "events": _events(tree),
        "rules": _rules(tree),
        "codes": dict.fromkeys(sorted(filter(RULE_ID.fullmatch, literals(tree))), ""),
    }


def _table(tree: Path, name: str) -> Iterator[list[str]]:
    """Yield the rows of a table in the documentation, which is generated from the code and checked by `test_docs.py`."""
    for page in (tree / "README.md", *sorted(tree.glob("docs/*.md"))):
        for found in re.findall(rf"<!-- {name}: made by .*? -->(.*?)<!-- end -->", page.read_text(), re.DOTALL):
            for row in ROW.findall(found)[1:]:
                yield [cell.strip(" `").replace("`", "") for cell in row.split("|")]


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)
        else:
            name = " ".join([parser.prog, *(action.option_strings or [action.dest])])
            yield name, " ".join(map(str, action.choices or ()))


def modules(tree: Path) -> Iterator[ast.Module]:
    """Yield the parsed modules of a tree."""
    for path in sorted((tree / "cgm_proxy").rglob("*.py")):
        yield ast.parse(path.read_text())


def literals(tree: Path) -> set[str]:
    """Return all string literals of a tree's code."""
    nodes = (node for module in modules(tree) for node in ast.walk(module))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _events(tree: Path) -> dict[str, str]:
    """Return the events that are logged, with the names of their fields."""
    events: dict[str, set[str]] = {}
    for node in (node for module in modules(tree) for node in ast.walk(module)):
        match node:
            case ast.Call(func=ast.Name("log"), args=[ast.Constant(event), *_], keywords=keywords):
                fields = {keyword.arg for keyword in keywords if keyword.arg and keyword.arg != "exc_info"}
                events.setdefault(event, set()).update(fields)
    return {event: " ".join(sorted(fields)) for event, fields in sorted(events.items())}


def _rules(tree: Path) -> dict[str, str]:
    """Return the ids of rules by the file that holds them, and those of R4's invariants by type."""
    rules = {}
    for path in sorted((tree / "rules").rglob("*.yaml")):
        content = yaml.safe_load(path.read_text().partition("\n---")[0])
        rules[path.relative_to(tree).as_posix()] = " ".join(rule["id"] for rule in content["rules"])
    for line in (tree / "rules" / "r4" / "types.ndjson").read_text().splitlines():
        type_ = json.loads(line)
        if type_.get("invariants"):
            rules[f"R4 {type_['type']}"] = " ".join(key for key, *_ in type_["invariants"])
    return rules


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(root))
    sys.stdout.write(json.dumps(inventory(root), indent=1) + "\n")
