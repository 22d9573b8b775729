"""What of the chart is made from other sources: `python tests/generated_chart.py` renews it, a test compares it.

values.schema.json's part for `settings` comes from the settings' metadata, the table in helm/README.md from the
comments in values.yaml.
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
#: JSON Schema in helm is matched by Go's regular expressions, which have no look-ahead; the proxy itself is stricter.
PATTERNS = {
    "url": r"^(https?://[^?#@\s]+)?$",
    "address": r"^[A-Za-z0-9._:-]+$",
    "path": r"^/",
    "file": r"^/",
    "replica url": r"^https?://",
}
MARKED = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)


def settings_schema() -> dict:
    """Give the JSON Schema of `settings`; a secret is no property of it."""
    top: dict = {"type": "object", "additionalProperties": False, "properties": {}}
    for key in KEYS.values():
        section, _, leaf = key.name.rpartition(".")
        if section and section not in top["properties"]:
            top["properties"][section] = {"type": "object", "additionalProperties": False, "properties": {}}
        if not key.secret:
            (top["properties"][section] if section else top)["properties"][leaf] = key_schema(key)
    for port in ("port", "ops_port"):
        top["properties"]["listen"]["properties"][port]["minimum"] = 1  # a Service needs to know it
    return top


def key_schema(key: Key) -> dict:
    """Give the JSON Schema of one setting."""
    if key.choices:
        return {"enum": list(key.choices)}
    if key.kind is tuple:
        return {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"}}
    kind = {int: "integer", float: "number", str: "string"}[key.kind]
    schema: dict = {"type": [kind, "null"] if key.optional else kind}
    if key.at_least is not None:
        schema |= {"minimum": key.at_least, "maximum": key.at_most}
    if key.form in PATTERNS:
        schema["pattern"] = PATTERNS[key.form]
    return schema


def values_table() -> str:
    """Give a table of the values that a comment explains: name, default, meaning."""
    text = (CHART / "values.yaml").read_text("utf-8")
    rows = [
        f"| `{name}` | {f'`{json.dumps(default)}`' if default is not None else ''} | {doc.replace('|', chr(92) + '|')} |"
        for name, default, doc in documented(yaml.compose(text), text.splitlines(), "")
    ]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows]) + "\n"


def documented(mapping: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, object, str]]:
    """Give name, default and comment of each key with a comment; no default, where the keys below have comments."""
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
    """Join the comment lines directly above a line."""
    found: list[str] = []
    while line and lines[line - 1].lstrip().startswith("# "):
        line -= 1
        found.insert(0, lines[line].strip("# "))
    return " ".join(found)


def renewed() -> dict[Path, str]:
    """Give the files that hold generated parts, with these renewed."""
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
