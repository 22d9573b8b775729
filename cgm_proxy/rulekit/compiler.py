"""Compile a snapshot into rules: what it narrows against R4's own type becomes FHIRPath."""

import re
from dataclasses import dataclass, field
from typing import Any

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import CORE, ElementDefinition, Model, Type
from cgm_proxy.core.rules.static_analysis import analyse
from cgm_proxy.rulekit.snapshots import Guide, Tree, both, criterion, fixed, profiles, quoted, tests, types

#: Invariants of R4 that every snapshot repeats or that are best practice only.
BASE_KEYS = re.compile(
    r"^(ele|ext|dom|obs|bdl|dgr|prr|dev|pat|per|qty|cnl|sdf|txt|ref|att|cpt|tim|rat|rng|org|cnt|drt)-\d+$"
)

#: Invariants that are written so that they cannot fail, as the HL7 validator finds too.
NEVER = {"us-core-1": "`$this is DateTime` is false of every FHIR dateTime"}


@dataclass
class Compiler:
    """Compiles one profile's snapshot; `rules` grows."""

    guide: Guide
    definition: JsonObject
    rules: list[JsonObject] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def model(self) -> Model:
        """R4's element model."""
        return self.guide.model

    def rule(self, element: JsonObject, on: str, expression: str, text: str, shows: str = "") -> None:
        """Add a rule; its id is made from the element and what is asked."""
        made = {"id": "", "element": element["id"], "at": on, "expression": expression, "shows": shows, "text": text}
        made = {key: value for key, value in made.items() if value or key == "id"}
        if by_slice(on, expression):
            return
        if not any(made["expression"] == r["expression"] and made.get("at") == r.get("at") for r in self.rules):
            self.rules.append(made)

    def compile(self) -> list[JsonObject]:
        """Give the profile's rules."""
        tree = self.guide.trees[self.definition["url"]]
        base = self.model.type(self.definition["type"])
        self.invariants(tree.definition, "")
        self.members(tree, "", base)
        if self.definition["type"] == "Extension":
            self.parts(tree)
        cures(self.rules)
        number(self.rules)
        return self.rules

    def parts(self, tree: Tree) -> None:
        """Compile that an extension has no other parts than those it defines."""
        part = tree.children.get("extension")
        if part and part.slices:
            named = " | ".join(quoted(name) for name in part.slices)
            test = f"extension.all(url in ({named}) or url.contains(':'))"
            self.rule(part.definition, "", test, f"no other parts than {', '.join(part.slices)}", "extension.url")

    def members(self, tree: Tree, on: str, base: Type | None) -> None:
        """Compile the children of an element that FHIRPath `on` selects."""
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
        """Compile what an element or slice, selected by `here`, must contain."""
        self.value(tree.definition, here, parent, name)
        self.binding(tree.definition, here, base)
        self.references(tree.definition, here, base)
        self.invariants(tree.definition, here)
        if tree.children:
            self.members(tree, here, self.type_of(tree, base))

    def type_of(self, tree: Tree, base: ElementDefinition | None) -> Type | None:
        """Give the type whose elements the children are."""
        if base and len(base.types) == 1 and next(iter(base.types)) != "Resource":
            return self.model.type(next(iter(base.types)))
        named = types(tree.definition)
        return self.model.type(named[0]) if named else None

    def cardinality(self, definition: JsonObject, on: str, name: str, base: ElementDefinition | None) -> None:
        """Compile a minimum above, and a maximum below, those of R4."""
        least, most = definition.get("min", 0), definition.get("max", "*")
        if least > (base.least if base else 0):
            test = f"{name}.exists()" if least == 1 else f"{name}.count() >= {least}"
            self.rule(
                definition, on, test, f"{article(name)} {name}" if least == 1 else f"at least {least} {name}", name
            )
        if most != "*" and (base is None or base.most is None or int(most) < base.most):
            if most == "0":
                self.rule(definition, on, f"{name}.empty()", f"no {name}", name)
            elif base is None or base.many:
                self.rule(definition, on, f"{name}.count() <= {most}", f"at most {most} {name}", name)

    def types(self, definition: JsonObject, on: str, name: str, base: ElementDefinition | None) -> None:
        """Compile the types of a choice that are fewer than R4's."""
        named = types(definition)
        if base is None or not base.choice or not named or set(named) >= set(base.types):
            return
        test = f"{name}.all({' or '.join(f'$this is {t}' for t in named)})"
        self.rule(definition, on, test, " or ".join(f"{article(t)} {t}" for t in named), name)

    def value(self, definition: JsonObject, here: str, parent: str, name: str) -> None:
        """Compile a fixed or pattern value: of a primitive on its parent, of an object on itself."""
        found = fixed(definition)
        if found is None:
            return
        if f"{name} = {quoted(found[1])}" in parent:
            return  # by this the slice was found
        if not isinstance(found[1], dict):
            test = f"{name}.hasValue() implies {name} = {quoted(found[1])}"
            self.rule(definition, parent, test, quoted_text(found[1]), name)
            return
        for test in tests(found[1]):
            shows, text = told(test)
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
            self.rule(definition, here, test, "codes that their code systems have", "coding.code")
        if binding.get("strength") != "required" or not url:
            return
        self.rule(definition, here, f"memberOf({quoted(url)})", f"a code of the value set {url}")

    def references(self, definition: JsonObject, here: str, base: ElementDefinition | None) -> None:
        """Compile the targets of a Reference that are fewer than R4's, or profiled."""
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
            self.rule(definition, here, test, f"a reference to {article(named[0])} {' or '.join(named)}", "reference")
        if any(not url.startswith(CORE) for url in targets):
            test = " or ".join(f"resolve().conformsTo({quoted(url)})" for url in targets)
            short = " or ".join(url.rpartition("/")[2] for url in targets)
            self.rule(
                definition,
                here,
                f"resolve().empty() or {test}",
                f"a reference to a resource that conforms to {short}",
                "reference",
            )

    def target_type(self, url: str) -> str:
        """Give the resource type of a target profile."""
        known = self.guide.by_url.get(url.split("|")[0])
        return str(known["type"]) if known else url.rpartition("/")[2]

    def invariants(self, definition: JsonObject, here: str) -> None:
        """Compile the invariants that the profile adds."""
        for rule in definition.get("constraint", []):
            if rule["severity"] != "error" or "expression" not in rule or BASE_KEYS.match(rule["key"]):
                continue
            if rule["key"] in NEVER:
                self.left_out.append(f"{self.definition['id']}: {rule['key']}: {NEVER[rule['key']]}")
                continue
            problems = analyse(self.model, rule["expression"], self.definition["type"], here)[0].problems
            if problems:
                self.left_out.append(f"{self.definition['id']}: {rule['key']} never applies: {problems[0]}")
            else:
                self.rule(definition, here, rule["expression"], rule["human"])
                self.rules[-1]["id"] = rule["key"]

    def sliced(self, tree: Tree, on: str, name: str, base: ElementDefinition | None) -> None:
        """Compile slices: each one's number, what is in it, and that no element is in two."""
        slicing = tree.definition.get("slicing", {})
        found = {}
        for slice_name, slice_ in tree.slices.items():
            parts = [c for d in slicing.get("discriminator", []) for c in criterion(self.guide, slice_, d)]
            if slice_name and parts:
                found[slice_name] = parts
                self.slice(tree, slice_, on, name, base, parts)
        if slicing.get("rules") == "closed" and found:
            test = f"{name}.all({' or '.join(both(p) if len(p) == 1 else f'({both(p)})' for p in found.values())})"
            self.rule(tree.definition, on, test, f"no other {name} than {', '.join(found)}", name)
        self.apart(tree, on, name, found, tree.slices)

    def apart(self, tree: Tree, on: str, name: str, found: dict[str, list[str]], slices: dict[str, Tree]) -> None:
        """Compile that no element is in two slices, where they do not exclude one another by type or url."""
        leaves = {k: v for k, v in found.items() if not any(other.startswith(k + "/") for other in slices)}
        open_ = {k: v for k, v in leaves.items() if not any(re.match(r"(\$this is|url =)", part) for part in v)}
        if len(open_) > 1:
            here = f"{on}.{name}" if on else name
            total = " + ".join(f"iif({both(v)}, 1, 0)" for v in open_.values())
            self.rule(tree.definition, here, f"{total} <= 1", f"one of {', '.join(open_)}, not two at once")

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
        told_already = ("fixed", "pattern") if any(d["path"] == "$this" for d in by_content(tree)) else ()
        kept = {k: v for k, v in definition.items() if not (told_already and k.startswith((*told_already, "binding")))}
        inner = Tree(kept, slice_.children)
        if name != "extension":
            self.content(inner, here, base)
        else:
            self.members(inner, here, self.model.type("Extension"))

    def slice_number(
        self, definition: JsonObject, on: str, chosen: str, name: str, like: str, most_of_all: str
    ) -> None:
        """Compile how often a slice must and may occur; `like` says what its elements are like."""
        least, most = definition.get("min", 0), definition.get("max", "*")
        if ".ofType(" in chosen and most_of_all == "1":
            least = 0  # that the choice is there, and of this type, are rules already
        if least and most == "1" and most_of_all != "1":
            self.rule(definition, on, f"{chosen}.count() = 1", f"exactly one {name} {like}", name)
        elif least:
            self.rule(definition, on, f"{chosen}.count() >= {least}", f"at least {least} {name} {like}", name)
        elif most not in {"*", "0"} and most_of_all != "1":
            self.rule(definition, on, f"{chosen}.count() <= {most}", f"at most {most} {name} {like}", name)
        elif most == "0":
            self.rule(definition, on, f"{chosen}.empty()", f"no {name} {like}", name)

    def slice_profiles(self, slice_: Tree, here: str, name: str) -> None:
        """Compile that the resource of a Bundle's entry conforms to the slice's profile."""
        resource = slice_.children.get("resource")
        urls = profiles(resource.definition, "profile") if resource and name == "entry" else []
        if resource and urls:
            test = " or ".join(f"resource.conformsTo({quoted(url)})" for url in urls)
            short = " or ".join(url.rpartition("/")[2] for url in urls)
            self.rule(resource.definition, here, test, f"a resource that conforms to {short}", "resource.resourceType")


def by_slice(at: str, expression: str) -> bool:
    """Whether what an expression asks is what the slice that `at` selects was found by."""
    if (found := re.search(r"(resolve\(\)|resource)\.conformsTo\('[^']*'\)", expression)) and found[0] in at:
        return True
    if "resolve()" in at and expression.startswith("targetType()"):
        return True  # what is resolved has its type judged by its profile
    last = at.rpartition(".")[2]
    exists = re.fullmatch(r"(\w+)\.exists\(\)", expression)
    if exists and re.search(rf"(\(|and ){exists[1]} = ", at):
        return True
    return last.isidentifier() and f"{last}.{expression}" in at


def by_content(tree: Tree) -> list[JsonObject]:
    """Give the discriminators that find slices by what is in them."""
    slicing = tree.definition.get("slicing", {}).get("discriminator", [])
    return [d for d in slicing if d["type"] in {"value", "pattern"}]


def described(parts: list[str], name: str, label: str) -> str:
    """Tell the elements of a slice from the others in words, by the tests that find them."""
    test = " and ".join(parts)
    if found := re.findall(r"conformsTo\('[^']*/([^'/]*)'\)", test):
        return f"that refers to a {' and a '.join(found)}" if "resolve()" in test else f"of a {' and a '.join(found)}"
    if found := re.findall(r"(?:system = '([^']*)' and )code = '([^']*)'", test):
        codes = " and ".join(f'"{code}" of {system}' for system, code in found)
        named = f" ({label})" if name in {"component", "hasMember"} else ""
        return f"{'whose resource has' if 'resolve()' in test else 'with'} the code {codes}{named}"
    if valued := re.fullmatch(r"(\w+) = '([^']*)'", test):
        return f'with the {valued[1]} "{valued[2]}"'
    kind = re.fullmatch(r"resource is (\w+)", test)
    return f"of a {kind[1]}" if kind else f"for {label}"


def article(name: str) -> str:
    """Give the article that a message puts before a name."""
    return "an" if name[0] in "aeioAEIO" else "a"


def cures(rules: list[JsonObject]) -> None:
    """Add what may stay to the text about a unit: submitters mend the code when told that the unit is wrong."""
    for rule in rules:
        code = next((r for r in rules if r.get("at") == rule.get("at") and r.get("shows") == "code"), None)
        if rule.get("shows") == "unit" and code and code["text"].startswith('"') and code["text"] != rule["text"]:
            rule["text"] += f" (the code stays {code['text']})"


def quoted_text(value: Any) -> str:
    """Give a value as a message shows it."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def told(test: str) -> tuple[str, str]:
    """Give what a pattern's test shows and how a message tells it."""
    if found := re.fullmatch(r"coding\.where\((?:system = '([^']*)' and )?code = '([^']*)'\)\.exists\(\)", test):
        return "coding.code", f'a coding with the code "{found[2]}"' + (f" of {found[1]}" if found[1] else "")
    if found := re.fullmatch(r"(\w+) = '([^']*)'", test):
        return found[1], f'"{found[2]}"'
    return "", test


def number(rules: list[JsonObject]) -> None:
    """Give each rule an id, made from its element; a second rule on an element gets a number."""
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
