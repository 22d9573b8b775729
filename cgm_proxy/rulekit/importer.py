"""Compile a guide's StructureDefinitions into rules: readable FHIRPath as YAML, to be reviewed.

    cgm-proxy rules import DIRECTORY|PACKAGE.tgz --dialect NAME --out rules/NAME

A snapshot is compared with R4's own type, and only what it narrows becomes a rule: cardinalities, types, fixed and pattern
values, slices (by value, pattern, type, profile, `resolve().code`), references' targets, required bindings, invariants.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import CORE, Model
from cgm_proxy.core.rules.rule_files import RulesError, documents
from cgm_proxy.rulekit.compiler import Compiler
from cgm_proxy.rulekit.guide_files import read_definitions
from cgm_proxy.rulekit.r4_definitions import Terminology, write
from cgm_proxy.rulekit.snapshots import Guide, both, fixed, profiles, quoted


def implied_by(guide: Guide, definition: JsonObject) -> str | None:
    """Give the FHIRPath by which a resource without a claim is judged by a profile: its code, where that is fixed."""
    if definition["type"] == "Device":
        return "true"  # a submission's Device is the CGM device
    if definition["type"] not in {"Observation", "DiagnosticReport", "ServiceRequest"}:
        return None
    tests_ = guide.code_tests(definition["url"])
    twins = [u for u, d in guide.by_url.items() if d["type"] == definition["type"] and guide.code_tests(u) == tests_]
    return both(tests_ + (by_unit(guide, definition["url"]) if len(twins) > 1 else [])) or None


def by_unit(guide: Guide, url: str) -> list[str]:
    """Give the condition that tells profiles of one code apart: their unit or its UCUM code, in any case of letters."""
    value = guide.trees[url].children.get("value[x]")
    parts = {name: fixed(part.definition) for name, part in value.children.items()} if value else {}
    wanted = [(name, found[1]) for name, found in parts.items() if found and name in {"unit", "code"}]
    test = " or ".join(f"{name}.lower() = {quoted(text.lower())}" for name, text in wanted)
    return [f"value.ofType(Quantity).where({test}).exists()"] if test else []


def made_of(guide: Guide, definition: JsonObject) -> list[str]:
    """Give the profiles that a profile's slices refer to, also the optional ones: who orders the whole takes the parts."""
    found = []
    for part in guide.trees[definition["url"]].children.values():
        for slice_ in part.slices.values():
            found += profiles(slice_.definition, "targetProfile")
    return sorted({url for url in found if not url.startswith(CORE)})


def profile_file(guide: Guide, definition: JsonObject, dialect: str, *, parent: bool = False) -> JsonObject:
    """Give a profile's file as data."""
    context = [c["expression"] for c in definition.get("context", [])] if definition["type"] == "Extension" else []
    made = {
        "profile": definition["url"],
        "dialect": dialect,
        "type": definition["type"],
        "title": definition.get("title", definition["name"]),
        "parent": parent,
        "context": context,
        "when": implied_by(guide, definition),
        "made_of": made_of(guide, definition),
        "rules": Compiler(guide, definition).compile(),
    }
    return {key: value for key, value in made.items() if value or key == "rules"}


class _Dumper(yaml.SafeDumper):
    """Writes long FHIRPath on one line and lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        return super().increase_indent(flow, indentless=False)


def dump(made: JsonObject) -> str:
    """Give a file's text."""
    return yaml.dump(made, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def import_guide(
    source: Path,
    dialect: str,
    out: Path,
    *,
    rules: Path = Path("rules"),
    beside: Iterable[Path] = (),
    parent: bool = False,
) -> list[Path]:
    """Compile the profiles of a guide's directory or package into `out`, one YAML file each, with its codes; give the files.

    `beside` are directories of guides that this one builds on (US Core); `parent` says that this is such a guide. Nothing is
    written unless all can be compiled.
    """
    own = read_definitions(source)
    others = [definition for other in beside for definition in read_definitions(other)]
    guide = Guide(Model(rules / "r4"), [*others, *own])
    made = {
        out / f"{definition['id']}.yaml": profile_file(guide, definition, dialect, parent=parent)
        for definition in own
        if definition["resourceType"] == "StructureDefinition"
    }
    try:
        texts = {path: file_text(path, data) for path, data in made.items()}
        out.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        write_codes(out / "codes.ndjson", own)
    except OSError as error:
        at = error.filename or out
        raise RulesError(f"{at}: can't be written: {error.strerror}; name another directory by --out") from error
    return list(texts)


def file_text(path: Path, made: JsonObject) -> str:
    """Give a file's text, with what a reviewer added to the one that is there."""
    if not path.exists():
        return dump(made)
    text = dump(kept_by_hand(path) | made)
    samples = path.read_text(encoding="utf-8").partition("\n---\n")[2]
    return text + (f"---\n{samples}" if samples else "")


def kept_by_hand(path: Path) -> JsonObject:
    """Give what a reviewer added to a file where the guide says nothing: `when` and `made_of`."""
    written = next(documents(path), None) or {}
    return {key: written[key] for key in ("profile", "dialect", "type", "title", "when", "made_of") if key in written}


def write_codes(path: Path, own: list[JsonObject]) -> None:
    """Write a guide's code systems and value sets, where their codes are known."""
    terms = Terminology(own)
    lines: list[JsonObject] = [{"system": url, "codes": sorted(terms.codes(url))} for url in terms.systems]
    sets = {url: terms.expand(url) for url in terms.sets}
    lines += [{"valueSet": url, "codes": found} for url, found in sets.items() if found]
    if lines:
        write(path, lines)
