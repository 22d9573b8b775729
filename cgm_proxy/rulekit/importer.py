"""`cgm-proxy rules import`: compile the StructureDefinitions of a guide into rule files, which a person then reviews.

    cgm-proxy rules import DIRECTORY|PACKAGE.tgz --dialect NAME --out rules/NAME

Each snapshot is compared with R4's own type, and only its narrower constraints become rules: cardinalities, types, fixed and
pattern values, slices (by value, pattern, type, profile, `resolve().code`), targets of references, required bindings,
invariants.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import CORE
from cgm_proxy.core.rules.rule_files import RulesError
from cgm_proxy.rulekit.compiler import Compiler
from cgm_proxy.rulekit.guide_files import read_definitions
from cgm_proxy.rulekit.loading import RuleFile, r4_model
from cgm_proxy.rulekit.r4_definitions import Terminology, write
from cgm_proxy.rulekit.snapshots import Guide, both, fixed, profiles, quoted


def implied_by(guide: Guide, definition: JsonObject) -> str | None:
    """Return the FHIRPath by which a profile applies to resources that claim none: its code, if the profile fixes one."""
    if definition["type"] == "Device":
        return "true"  # the Device of a submission is the CGM device
    if definition["type"] not in {"Observation", "DiagnosticReport", "ServiceRequest"}:
        return None
    code = guide.code_tests(definition["url"])
    alike = [u for u, d in guide.by_url.items() if d["type"] == definition["type"] and guide.code_tests(u) == code]
    return both(code + (unit_tests(guide, definition["url"]) if len(alike) > 1 else [])) or None


def unit_tests(guide: Guide, url: str) -> list[str]:
    """Return the test that distinguishes profiles of one code: their unit or its UCUM code, whatever the case of letters."""
    value = guide.trees[url].children.get("value[x]")
    parts = {name: fixed(part.definition) for name, part in value.children.items()} if value else {}
    units = [(name, found[1]) for name, found in parts.items() if found and name in {"unit", "code"}]
    test = " or ".join(f"{name}.lower() = {quoted(text.lower())}" for name, text in units)
    return [f"value.ofType(Quantity).where({test}).exists()"] if test else []


def made_of(guide: Guide, definition: JsonObject) -> list[str]:
    """Return the profiles to which the slices of a profile refer, with the optional ones."""
    found = []
    for part in guide.trees[definition["url"]].children.values():
        for slice_ in part.slices.values():
            found += profiles(slice_.definition, "targetProfile")
    return sorted({url for url in found if not url.startswith(CORE)})


def rule_document(guide: Guide, definition: JsonObject, dialect: str) -> JsonObject:
    """Return the first document of a profile's rule file."""
    context = [c["expression"] for c in definition.get("context", [])] if definition["type"] == "Extension" else []
    document = {
        "profile": definition["url"],
        "dialect": dialect,
        "type": definition["type"],
        "title": definition.get("title", definition["name"]),
        "context": context,
        "when": implied_by(guide, definition),
        "made_of": made_of(guide, definition),
        "rules": Compiler(guide, definition).compile(),
    }
    return {key: value for key, value in document.items() if value or key == "rules"}


class _Dumper(yaml.SafeDumper):
    """Writes long FHIRPath on one line, and lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        return super().increase_indent(flow, indentless=False)


def dump(document: JsonObject) -> str:
    """Return a document as YAML."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def import_guide(
    source: Path, dialect: str, out: Path, *, shipped: Path | None = None, beside: Iterable[Path] = ()
) -> list[Path]:
    """Compile the profiles of a guide's directory or package into files of `out`, and write its codes; return the files.

    `shipped` has the shipped rules with the definitions of R4, `beside` are the directories of guides that this one builds
    on (US Core). Nothing is written unless everything can be compiled.
    """
    own = read_definitions(source)
    others = [definition for directory in beside for definition in read_definitions(directory)]
    guide = Guide(r4_model(shipped), [*others, *own])
    documents = {
        out / f"{definition['id']}.yaml": rule_document(guide, definition, dialect)
        for definition in own
        if definition["resourceType"] == "StructureDefinition"
    }
    try:
        texts = {path: file_text(path, document) for path, document in documents.items()}
        out.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        write_codes(out / "codes.ndjson", own)
    except OSError as error:
        at = error.filename or out
        raise RulesError(f"{at}: can't be written: {error.strerror}; name another directory by --out") from error
    return list(texts)


def file_text(path: Path, document: JsonObject) -> str:
    """Return the text of a rule file, with the samples and reviewed keys of the file that is there already."""
    if not path.exists():
        return dump(document)
    present = RuleFile(path)
    text = dump(reviewed_keys(present) | document)
    samples = present.content.decode("utf-8").partition("\n---\n")[2]
    return text + (f"---\n{samples}" if samples else "")


def reviewed_keys(file: RuleFile) -> JsonObject:
    """Return the keys of a file that a reviewer may have added where the guide says nothing, such as `when` and `made_of`."""
    document = file.rules.document.value
    keys = {"profile", "dialect", "type", "title", "parent", "when", "made_of"}
    return {key: document[key] for key in document if key in keys} if isinstance(document, dict) else {}


def write_codes(path: Path, own: list[JsonObject]) -> None:
    """Write the code systems and value sets of a guide as far as their codes are known."""
    terms = Terminology(own)
    lines: list[JsonObject] = [{"system": url, "codes": sorted(terms.codes(url))} for url in terms.systems]
    sets = {url: terms.expand(url) for url in terms.sets}
    lines += [{"valueSet": url, "codes": found} for url, found in sets.items() if found]
    if lines:
        write(path, lines)
