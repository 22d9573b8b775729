"""Compile a snapshot into rules: each constraint that is narrower than R4's own becomes FHIRPath.

The `text` of a rule completes the sentence "<profile> requires …".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import CORE, ElementDefinition, Model, Type
from cgm_proxy.core.rules.fhirpath import Expressions
from cgm_proxy.core.rules.static_analysis import analyse
from cgm_proxy.rulekit.snapshots import Guide, Tree, both, criterion, fixed, profiles, quoted, tests, types

#: Invariants of R4, which every snapshot repeats.
BASE_KEYS = re.compile(
    r"^(ele|ext|dom|obs|bdl|dgr|prr|dev|pat|per|qty|cnl|sdf|txt|ref|att|cpt|tim|rat|rng|org|cnt|drt)-\d+$"
)

#: Invariants that can never fail, in the HL7 validator as well: us-core-1 begins with `$this is DateTime`, which is false of
#: every FHIR dateTime.
NEVER_FAIL = frozenset({"us-core-1"})

#: Names of elements that are no nouns to be counted, with the words that a text has instead.
NOUNS = {
    "active": "a value for active",
    "data": "data",
    "effective": "an effective time",
    "family": "a family name",
}


@dataclass
class Compiler:
    """Compiles the snapshot of one profile. `on` is always the FHIRPath that selects the parents of an element."""

    guide: Guide
    definition: JsonObject
    rules: list[JsonObject] = field(default_factory=list)
    """The rules so far; each method adds to them."""
    expressions: Expressions = field(default_factory=Expressions)

    @property
    def model(self) -> Model:
        """The element model of R4."""
        return self.guide.model

    def rule(self, element: JsonObject, on: str, expression: str, text: str, shows: str = "", name: str = "") -> None:
        """Add a rule, unless an equal one exists; `name` is its id, if that does not come from the element."""
        rule = {"id": name, "element": element["id"], "at": on, "expression": expression, "shows": shows, "text": text}
        rule = {key: value for key, value in rule.items() if value or key == "id"}
        if selected_by(on, expression):
            return
        if not any(rule["expression"] == r["expression"] and rule.get("at") == r.get("at") for r in self.rules):
            self.rules.append(rule)

    def compile(self) -> list[JsonObject]:
        """Return the rules of the profile."""
        tree = self.guide.trees[self.definition["url"]]
        base = self.model.type(self.definition["type"])
        self.invariants(tree.definition, "")
        self.members(tree, "", base)
        if self.definition["type"] == "Extension":
            self.parts(tree)
        add_codes_to_units(self.rules)
        add_ids(self.rules)
        return self.rules

    def parts(self, tree: Tree) -> None:
        """Compile the rule that an extension has only the parts that it defines."""
        part = tree.children.get("extension")
        if part and part.slices:
            named = " | ".join(quoted(name) for name in part.slices)
            test = f"extension.all(url in ({named}) or url.contains(':'))"
            self.rule(part.definition, "", test, f"each part to be one of {', '.join(part.slices)}", "extension.url")

    def members(self, tree: Tree, on: str, base: Type | None) -> None:
        """Compile the children of an element of type `base`."""
        for name, part in tree.children.items():
            element = base.elements.get(name) if base else None
            self.element(part, on, element)

    def element(self, tree: Tree, on: str, base: ElementDefinition | None) -> None:
        """Compile one element, its slices and its children."""
        definition, name = tree.definition, tree.name.removesuffix("[x]")
        self.cardinality(definition, on, name, base)
        if definition.get("max") == "0":
            return
        self.types(definition, on, name, base)
        here = f"{on}.{name}" if on else name
        if tree.name.endswith("[x]") and len(types(definition)) == 1:
            here += f".ofType({types(definition)[0]})"
        self.content(tree, here, base, parent=on, name=name)
        if tree.slices:
            self.sliced(tree, on, name, base)

    def content(self, tree: Tree, here: str, base: ElementDefinition | None, parent: str = "", name: str = "") -> None:
        """Compile the content of an element or slice that `here` selects."""
        self.value(tree.definition, here, parent, name)
        self.binding(tree.definition, here, base)
        self.references(tree.definition, here, base)
        self.invariants(tree.definition, here)
        if tree.children:
            self.members(tree, here, self.type_of(tree, base))

    def type_of(self, tree: Tree, base: ElementDefinition | None) -> Type | None:
        """Return the type that has the children of an element."""
        if base and len(base.types) == 1 and next(iter(base.types)) != "Resource":
            return self.model.type(next(iter(base.types)))
        named = types(tree.definition)
        return self.model.type(named[0]) if named else None

    def cardinality(self, definition: JsonObject, on: str, name: str, base: ElementDefinition | None) -> None:
        """Compile a minimum above that of R4, and a maximum below it."""
        least, most = definition.get("min", 0), definition.get("max", "*")
        if least > (base.least if base else 0):
            if least == 1:
                self.rule(definition, on, f"{name}.exists()", a_or_an(name), name)
            else:
                self.rule(definition, on, f"{name}.count() >= {least}", f"at least {counted(least, name)}", name)
        if most != "*" and (base is None or base.most is None or int(most) < base.most):
            if most == "0":
                self.rule(definition, on, f"{name}.empty()", f"{name} to be absent", name)
            elif base is None or base.many:
                self.rule(definition, on, f"{name}.count() <= {most}", f"at most {counted(int(most), name)}", name)

    def types(self, definition: JsonObject, on: str, name: str, base: ElementDefinition | None) -> None:
        """Compile the types of a choice, if they are fewer than R4's."""
        named = types(definition)
        if base is None or not base.choice or not named or set(named) >= set(base.types):
            return
        test = f"{name}.all({' or '.join(f'$this is {t}' for t in named)})"
        self.rule(definition, on, test, listed([a_or_an(t) for t in named]), name)

    def value(self, definition: JsonObject, here: str, parent: str, name: str) -> None:
        """Compile a fixed or pattern value: of a primitive on its parent, of an object on itself."""
        found = fixed(definition)
        if found is None:
            return
        if f"{name} = {quoted(found[1])}" in parent:
            return  # the slice was selected by it
        if not isinstance(found[1], dict):
            test = f"{name}.hasValue() implies {name} = {quoted(found[1])}"
            self.rule(definition, parent, test, json_text(found[1]), name)
            return
        for test in tests(found[1]):
            shows, text = in_words(test)
            self.rule(definition, here, test, text, shows)

    def binding(self, definition: JsonObject, here: str, base: ElementDefinition | None) -> None:
        """Compile a required binding that R4 does not have."""
        binding = definition.get("binding", {})
        url = str(binding.get("valueSet", "")).split("|")[0]
        if base and url.endswith((base.binding or "-", base.weak_binding or "-")):
            return
        known = url in self.guide.sets or self.model.value_set(url) is not None
        if known and binding.get("strength") in {"extensible", "preferred"} and "CodeableConcept" in types(definition):
            test = f"memberOf({quoted(url)}) or knownCodes()"
            self.rule(definition, here, test, "codes that exist in their code systems", "coding.code")
        if binding.get("strength") != "required" or not url:
            return
        self.rule(definition, here, f"memberOf({quoted(url)})", f"a code from the value set {url}")

    def references(self, definition: JsonObject, here: str, base: ElementDefinition | None) -> None:
        """Compile the targets of a Reference, if they are fewer than R4's or have profiles."""
        targets = profiles(definition, "targetProfile")
        if "Reference" not in types(definition) or not targets or CORE + "Resource" in targets:
            return
        named = sorted({self.target_type(url) for url in targets})
        if (
            not base
            or set(named) < set(base.types.get("Reference", ()))
            or "Resource" in base.types.get("Reference", ())
        ):
            test = f"targetType().empty() or targetType() in ({' | '.join(map(quoted, named))})"
            self.rule(definition, here, test, f"a reference to {a_or_an(listed(named))}", "reference")
        if any(not url.startswith(CORE) for url in targets):
            test = " or ".join(f"resolve().conformsTo({quoted(url)})" for url in targets)
            names = listed([url.rpartition("/")[2] for url in targets])
            text = f"a reference to a resource that conforms to {names}"
            self.rule(definition, here, f"resolve().empty() or {test}", text, "reference")

    def target_type(self, url: str) -> str:
        """Return the resource type of a target profile."""
        known = self.guide.by_url.get(url.split("|")[0])
        return str(known["type"]) if known else url.rpartition("/")[2]

    def invariants(self, definition: JsonObject, here: str) -> None:
        """Compile the invariants that the profile adds."""
        for rule in definition.get("constraint", []):
            if rule["severity"] != "error" or "expression" not in rule or BASE_KEYS.match(rule["key"]):
                continue
            if rule["key"] in NEVER_FAIL:
                continue
            analysis, _ = analyse(self.model, self.expressions, rule["expression"], self.definition["type"], here)
            if analysis.problems:
                continue  # it reads elements that this type does not have, so it never applies
            text = f'the invariant {rule["key"]}: "{rule["human"]}"'
            self.rule(definition, here, rule["expression"], text, name=rule["key"])

    def sliced(self, tree: Tree, on: str, name: str, base: ElementDefinition | None) -> None:
        """Compile slices: how many elements each has, their content, and that no element is in two slices."""
        slicing = tree.definition.get("slicing", {})
        found = {}
        for slice_name, slice_ in tree.slices.items():
            parts = [c for d in slicing.get("discriminator", []) for c in criterion(self.guide, slice_, d)]
            if slice_name and parts:
                found[slice_name] = parts
                self.slice(tree, slice_, on, name, base, parts)
        if slicing.get("rules") == "closed" and found:
            test = f"{name}.all({' or '.join(both(p) if len(p) == 1 else f'({both(p)})' for p in found.values())})"
            self.rule(tree.definition, on, test, f"each {name} to be one of {', '.join(found)}", name)
        self.apart(tree, on, name, found, tree.slices)

    def apart(self, tree: Tree, on: str, name: str, found: dict[str, list[str]], slices: dict[str, Tree]) -> None:
        """Compile the rule that no element is in two slices, unless their types or URLs exclude it."""
        leaves = {k: v for k, v in found.items() if not any(other.startswith(k + "/") for other in slices)}
        open_ = {k: v for k, v in leaves.items() if not any(re.match(r"(\$this is|url =)", part) for part in v)}
        if len(open_) > 1:
            here = f"{on}.{name}" if on else name
            total = " + ".join(f"iif({both(v)}, 1, 0)" for v in open_.values())
            self.rule(tree.definition, here, f"{total} <= 1", f"each {name} to be at most one of {', '.join(open_)}")

    def slice(
        self, tree: Tree, slice_: Tree, on: str, name: str, base: ElementDefinition | None, parts: list[str]
    ) -> None:
        """Compile one slice."""
        definition = slice_.definition
        by_type = re.fullmatch(r"\$this is (\w+)", parts[0]) if len(parts) == 1 else None
        chosen = f"{name}.ofType({by_type[1]})" if by_type else f"{name}.where({both(parts)})"
        label = definition["sliceName"]
        self.slice_number(definition, on, chosen, name, described(parts, name, label), tree.definition.get("max", "*"))
        if definition.get("max") == "0":
            return
        here = f"{on}.{chosen}" if on else chosen
        self.slice_profiles(slice_, here, name)
        if any(d["path"] == "$this" for d in discriminators_by_content(tree)):  # the slice was selected by its content
            definition = {k: v for k, v in definition.items() if not k.startswith(("fixed", "pattern", "binding"))}
        inner = Tree(definition, slice_.children)
        if name != "extension":
            self.content(inner, here, base)
        else:
            self.members(inner, here, self.model.type("Extension"))

    def slice_number(
        self, definition: JsonObject, on: str, chosen: str, name: str, like: str, most_of_all: str
    ) -> None:
        """Compile how many elements a slice must and may have; `like` describes them."""
        least, most = definition.get("min", 0), definition.get("max", "*")
        if ".ofType(" in chosen and most_of_all == "1":
            least = 0  # other rules require the choice to exist and to be of this type
        if least and most == "1" and most_of_all != "1":
            self.rule(definition, on, f"{chosen}.count() = 1", f"exactly one {name} {like}", name)
        elif least:
            text = f"at least {counted(least, name)} {like}"
            self.rule(definition, on, f"{chosen}.count() >= {least}", text, name)
        elif most not in {"*", "0"} and most_of_all != "1":
            text = f"at most {counted(int(most), name)} {like}"
            self.rule(definition, on, f"{chosen}.count() <= {most}", text, name)
        elif most == "0":
            self.rule(definition, on, f"{chosen}.empty()", f"{name} elements {like} to be absent", name)

    def slice_profiles(self, slice_: Tree, here: str, name: str) -> None:
        """Compile the rule that the resource of a Bundle's entry conforms to the profile of the slice."""
        resource = slice_.children.get("resource")
        urls = profiles(resource.definition, "profile") if resource and name == "entry" else []
        if resource and urls:
            test = " or ".join(f"resource.conformsTo({quoted(url)})" for url in urls)
            text = f"a resource that conforms to {listed([url.rpartition('/')[2] for url in urls])}"
            self.rule(resource.definition, here, test, text, "resource.resourceType")


def selected_by(at: str, expression: str) -> bool:
    """Whether every element that `at` selects satisfies an expression, because the slice is selected by it."""
    if (found := re.search(r"(resolve\(\)|resource)\.conformsTo\('[^']*'\)", expression)) and found[0] in at:
        return True
    if "resolve()" in at and expression.startswith("targetType()"):
        return True  # the profile of the resolved resource checks its type
    last = at.rpartition(".")[2]
    exists = re.fullmatch(r"(\w+)\.exists\(\)", expression)
    if exists and re.search(rf"(\(|and ){exists[1]} = ", at):
        return True
    return last.isidentifier() and f"{last}.{expression}" in at


def discriminators_by_content(tree: Tree) -> list[JsonObject]:
    """Return the discriminators that select slices by their content."""
    discriminators = tree.definition.get("slicing", {}).get("discriminator", [])
    return [d for d in discriminators if d["type"] in {"value", "pattern"}]


def described(parts: Sequence[str], name: str, label: str) -> str:
    """Describe the elements of a slice in words, by the tests that select them."""
    test = " and ".join(parts)
    if found := re.findall(r"conformsTo\('[^']*/([^'/]*)'\)", test):
        return f"{'that refers to' if 'resolve()' in test else 'with'} a {' and a '.join(found)}"
    if found := re.findall(r"(?:system = '([^']*)' and )code = '([^']*)'", test):
        codes = " and ".join(f'"{code}" from {system}' for system, code in found)
        named = f" ({label})" if name in {"component", "hasMember"} else ""
        return f"{'whose resource has' if 'resolve()' in test else 'with'} the code {codes}{named}"
    if valued := re.fullmatch(r"(\w+) = '([^']*)'", test):
        return f'with the {valued[1]} "{valued[2]}"'
    kind = re.fullmatch(r"resource is (\w+)", test)
    return f"with a {kind[1]}" if kind else f"of the slice {label}"


def a_or_an(name: str) -> str:
    """Return a name with its article, or the words that stand for it."""
    return NOUNS.get(name) or f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def counted(number: int, name: str) -> str:
    """Return a number of elements in words: `one note`, `2 extension elements`."""
    return f"one {name}" if number == 1 else f"{number} {name} elements"


def listed(names: Sequence[str]) -> str:
    """Join alternatives: `a, b or c`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def add_codes_to_units(rules: list[JsonObject]) -> None:
    """Add the code, if it differs, to the text about a unit; otherwise submitters change the code as well."""
    for rule in rules:
        code = next((r for r in rules if r.get("at") == rule.get("at") and r.get("shows") == "code"), None)
        if rule.get("shows") == "unit" and code and code["text"].startswith('"') and code["text"] != rule["text"]:
            rule["text"] += f" (the code stays {code['text']})"


def json_text(value: Any) -> str:
    """Return a primitive as it stands in JSON."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def in_words(test: str) -> tuple[str, str]:
    """Return the path of the value that a pattern's test is about, and the test in words."""
    if found := re.fullmatch(r"coding\.where\((?:system = '([^']*)' and )?code = '([^']*)'\)\.exists\(\)", test):
        return "coding.code", f'a coding with the code "{found[2]}"' + (f" from {found[1]}" if found[1] else "")
    if found := re.fullmatch(r"(\w+) = '([^']*)'", test):
        return found[1], f'"{found[2]}"'
    return "", f"`{test}`"


def add_ids(rules: list[JsonObject]) -> None:
    """Add an id to each rule, from its element; further rules on the same element get a number."""
    seen: dict[str, int] = {}
    for rule in rules:
        if rule["id"]:
            continue  # an invariant keeps its key
        base = re.sub(r"\[x\]", "", rule["element"].partition(".")[2] or rule["element"])
        base = re.sub(r"[^A-Za-z0-9]+", "-", base).strip("-")
        if found := re.fullmatch(r"(\w+)(?:\.hasValue\(\) implies \w+)? = '.*'", rule["expression"]):
            base = base if base.endswith(found[1]) else f"{base}-{found[1]}"
        seen[base] = seen.get(base, 0) + 1
        rule["id"] = base if seen[base] == 1 else f"{base}-{seen[base]}"
