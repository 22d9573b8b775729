"""Codes: whether a code is in its code system and in the value set that an element is bound to.

The known code systems and value sets are those of R4 and of the guides (`Model`), and UCUM. A code of an unknown system
(LOINC, SNOMED CT) is never a fault. A code that its known system lacks is one, unless another coding of the same concept
counts: if the element is bound, a valid coding from the value set; otherwise any valid coding.
"""

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.findings import Findings, relative_path
from cgm_proxy.core.r4.model import ElementDefinition, Model, ValueSet
from cgm_proxy.core.r4.primitives import show
from cgm_proxy.core.r4.uris import SYSTEMS

#: The HL7 validator knows that it does not know these codes, so they never excuse another coding.
SNOMED = "http://snomed.info/sct"
QUANTITIES = frozenset({"Quantity", "SimpleQuantity", "MoneyQuantity", "Age", "Count", "Distance", "Duration"})

#: Codes that a message lists at most.
LISTED = 12


class CodeChecks:
    """Checks the codes of one resource and adds the faults to the findings."""

    def __init__(self, model: Model, findings: Findings) -> None:
        self._model = model
        self._findings = findings

    def code(self, binding: str, value: str, path: str) -> None:
        """Check a primitive code that must come from a value set."""
        allowed = self._model.value_set(binding)
        if allowed is None or any(codes is None or value in codes for codes in allowed.values()):
            return
        codes = sorted(code for codes in allowed.values() for code in codes or ())
        listed = ", ".join(codes[:LISTED]) + (", …" if len(codes) > LISTED else "")
        self._findings.add("r4-code", path, f"{relative_path(path)} is {show(value)}; R4 requires one of {listed}")

    def missing(self, element: ElementDefinition, path: str) -> None:
        """Add a fault for a code without a value if it must come from a value set; extensions do not replace it."""
        if element.binding and element.binding != "languages" and "code" in element.types:
            text = f"{relative_path(path)} has no value; R4 requires a code of {element.binding}"
            self._findings.add("r4-code", path, text)

    def coded_element(self, element: ElementDefinition, type_: str, value: JsonObject, path: str) -> None:
        """Check a CodeableConcept, Coding or Quantity by its code systems and by the element's value set."""
        if type_ == "CodeableConcept":
            codings = objects(value.get("coding"))
            self._concept(element, codings, path)
        elif type_ == "Coding" or type_ in QUANTITIES:
            codings = [value] if type_ == "Coding" or "code" in value else []
            self._single_coding(element, value, path)
        else:
            return
        allowed = self._model.value_set(element.binding) if element.binding else None
        if allowed and (codings or type_ == "CodeableConcept") and not any(_is_in(allowed, c) for c in codings):
            text = f"{relative_path(path)} has no code of the value set {element.binding}, which R4 requires"
            self._findings.add("r4-binding", path, text)

    def _concept(self, element: ElementDefinition, codings: list[JsonObject], path: str) -> None:
        binding = element.binding or element.weak_binding
        allowed = self._model.value_set(binding) if binding else None
        unknown = [index for index, coding in enumerate(codings) if self._model.has_code(coding) is False]
        if unknown and not any(self._counts(coding, allowed) for coding in codings):
            for index in unknown:
                self._add_unknown(codings[index], f"{path}.coding[{index}]")

    def _counts(self, coding: JsonObject, allowed: ValueSet | None) -> bool:
        """Whether a coding excuses the unknown codes of its concept."""
        if allowed is not None:
            return _is_in(allowed, coding) and self._model.has_code(coding) is not False
        return "system" in coding and coding["system"] != SNOMED and self._model.has_code(coding) is not False

    def _single_coding(self, element: ElementDefinition, coding: JsonObject, path: str) -> None:
        system = coding.get("system")
        if not isinstance(system, str) or "code" not in coding:
            return
        if not (element.binding or element.weak_binding):
            if not system.startswith(SYSTEMS):
                text = f"{relative_path(path)}.system is {show(system)}; R4 requires an absolute URI"
                self._findings.add("r4-coding", f"{path}.system", text)
            elif self._model.value_set(system) is not None and "/" in system:
                text = f"{relative_path(path)}.system is {show(system)}, a value set; R4 requires a code system"
                self._findings.add("r4-coding", f"{path}.system", text)
        if self._model.has_code(coding) is False:
            self._add_unknown(coding, path)

    def _add_unknown(self, coding: JsonObject, path: str) -> None:
        code, system = show(coding.get("code")), show(coding.get("system"))
        text = (
            f"{relative_path(path)}.code is {code}, which the code system {system} does not have; correct one of them"
        )
        self._findings.add("r4-coding", f"{path}.code", text)


def _is_in(allowed: ValueSet, coding: JsonObject) -> bool:
    system, code = coding.get("system"), coding.get("code")
    if not isinstance(system, str) or system not in allowed:
        return False
    codes = allowed[system]
    return codes is None or (isinstance(code, str) and code in codes)
