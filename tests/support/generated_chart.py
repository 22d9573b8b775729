"""The generated parts of the chart: `PYTHONPATH=tests python -m support.generated_chart` renews them, and a test checks them.

The part of values.schema.json for `settings` comes from the metadata of the settings. The table in helm/README.md comes from
the comments in values.yaml.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from support.places import ROOT

from cgm_proxy.settings.loading import KEYS
from cgm_proxy.settings.schema import Key

CHART = ROOT / "helm"
#: Helm matches JSON Schema's patterns with Go's regular expressions, which have no look-ahead. The proxy itself is stricter.
PATTERNS = {
    "url": r"^(https?://[^?#@\s]+)?$",
    "address": r"^[A-Za-z0-9._:-]+$",
    "path": r"^/",
    "file": r"^/",
    "replica url": r"^https?://",
}
MARKED = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)


def settings_schema() -> dict:
    """Return the JSON Schema of `settings`, which has no property for a secret."""
    top: dict = {"type": "object", "additionalProperties": False, "properties": {}}
    for key in KEYS.values():
        section, _, leaf = key.name.rpartition(".")
        if section and section not in top["properties"]:
            top["properties"][section] = {"type": "object", "additionalProperties": False, "properties": {}}
        if not key.secret:
            (top["properties"][section] if section else top)["properties"][leaf] = key_schema(key)
    for port in ("port", "ops_port"):
        top["properties"]["listen"]["properties"][port]["minimum"] = 1  # the Service has to know the port
    return top


def key_schema(key: Key) -> dict:
    """Return the JSON Schema of one setting."""
    if key.kind is tuple:
        return {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"}}
    if key.choices:
        return {"enum": list(key.choices)}
    kind = {int: "integer", float: "number", str: "string"}[key.kind]
    schema: dict = {"type": [kind, "null"] if key.optional else kind}
    if key.limits:
        schema |= dict(zip(("minimum", "maximum"), key.limits, strict=True))
    if key.form in PATTERNS:
        schema["pattern"] = PATTERNS[key.form]
    return schema


def values_table() -> str:
    """Return a table of the values that have a comment: name, default, meaning."""
    text = (CHART / "values.yaml").read_text("utf-8")
    rows = [
        f"| `{name}` | {f'`{json.dumps(default)}`' if default is not None else ''} | {doc.replace('|', chr(92) + '|')} |"
        for name, default, doc in documented(yaml.compose(text), text.splitlines(), "")
    ]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows]) + "\n"


def documented(mapping: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, object, str]]:
    """Yield name, default and comment of each key with a comment; the default is None if keys below it have comments."""
    for key, value in mapping.value:
        below = []
        if isinstance(value, yaml.MappingNode):
            below = list(documented(value, lines, f"{prefix}{key.value}."))
        comment = comment_above(lines, key.start_mark.line)
        if comment:
            default = None if below else yaml.safe_load(yaml.serialize(value))
            yield prefix + key.value, default, comment
        yield from below


def comment_above(lines: list[str], line: int) -> str:
    """Return the comment directly above a line, joined to one line."""
    comment: list[str] = []
    while line and lines[line - 1].lstrip().startswith("# "):
        line -= 1
        comment.insert(0, lines[line].strip("# "))
    return " ".join(comment)


def renewed() -> dict[Path, str]:
    """Return the new content of the files that have generated parts."""
    schema, readme = CHART / "values.schema.json", CHART / "README.md"
    values = json.loads(schema.read_text("utf-8"))
    values["properties"]["settings"] = settings_schema()
    return {
        schema: json.dumps(values, indent=2) + "\n",
        readme: MARKED.sub(lambda _: values_table(), readme.read_text("utf-8")),
    }


if __name__ == "__main__":
    for path, content in renewed().items():
        path.write_text(content, "utf-8")
