"""Codes: whether a code is in its code system and in the value set that an element is bound to.

What is known: the code systems and value sets of R4 and of the guides (`Model`), and UCUM. A system that is not known (LOINC,
SNOMED CT) is nobody's fault. A code that its own, known system does not have is one, unless another coding of the same
concept counts: one that is of the value set where the element is bound, any good one where it is not.
"""

from collections.abc import Mapping
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.findings import Findings, last
from cgm_proxy.core.r4.model import ElementDefinition, Model, ValueSet
from cgm_proxy.core.r4.primitives import show
from cgm_proxy.core.r4.uris import SYSTEMS

#: Of this one the HL7 validator knows that it can't know the codes, so that none of them excuses another coding.
SNOMED = "http://snomed.info/sct"
QUANTITIES = frozenset({"Quantity", "SimpleQuantity", "MoneyQuantity", "Age", "Count", "Distance", "Duration"})


class Codes:
    """Judges the codes of one walk."""

    def __init__(self, model: Model, found: Findings) -> None:
        self._model = model
        self._found = found

    def code(self, binding: str, value: str, where: str) -> None:
        """Judge a primitive code by the value set that it must be of."""
        allowed = self._model.value_set(binding)
        if allowed is None or any(codes is None or value in codes for codes in allowed.values()):
            return
        listed = sorted(code for codes in allowed.values() for code in codes or ())
        some = ", ".join(listed[:12]) + (", …" if len(listed) > 12 else "")
        self._found.add("r4-code", where, f"{last(where)} is {show(value)}; R4 wants one of {some}")

    def missing(self, element: ElementDefinition, where: str) -> None:
        """Refuse a code without a value where one of a value set is required; extensions do not replace it."""
        if element.binding and element.binding != "languages" and "code" in element.types:
            self._found.add("r4-code", where, f"{last(where)} has no value; R4 wants a code of {element.binding}")

    def bound(self, element: ElementDefinition, type_: str, value: JsonObject, where: str) -> None:
        """Judge a CodeableConcept, Coding or Quantity by its systems and by the element's value set."""
        if type_ == "CodeableConcept":
            codings = objects(value.get("coding"))
            self._concept(element, codings, where)
        elif type_ == "Coding" or type_ in QUANTITIES:
            codings = [value] if type_ == "Coding" or "code" in value else []
            self._alone(element, value, where)
        else:
            return
        allowed = self._model.value_set(element.binding) if element.binding else None
        if allowed and (codings or type_ == "CodeableConcept") and not any(_of(allowed, c) for c in codings):
            text = f"{last(where)} has no code of the value set {element.binding}, which R4 requires"
            self._found.add("r4-binding", where, text)

    def _concept(self, element: ElementDefinition, codings: list[JsonObject], where: str) -> None:
        wanted = element.binding or element.weak_binding
        allowed = self._model.value_set(wanted) if wanted else None
        for index, coding in enumerate(codings):
            if self._model.has_code(coding) is False and not any(self._counts(c, allowed) for c in codings):
                self._unknown(coding, f"{where}.coding[{index}]")

    def _counts(self, coding: JsonObject, allowed: ValueSet | None) -> bool:
        """Whether a coding excuses the other ones of its concept."""
        if allowed is not None:
            return _of(allowed, coding) and self._model.has_code(coding) is not False
        return "system" in coding and coding["system"] != SNOMED and self._model.has_code(coding) is not False

    def _alone(self, element: ElementDefinition, coding: JsonObject, where: str) -> None:
        system = coding.get("system")
        if not isinstance(system, str) or "code" not in coding:
            return
        if not (element.binding or element.weak_binding):
            if not system.startswith(SYSTEMS):
                text = f"{last(where)}.system is {show(system)}; R4 wants an absolute URI"
                self._found.add("r4-coding", f"{where}.system", text)
            elif self._model.value_set(system) is not None and "/" in system:
                text = f"{last(where)}.system is {show(system)}, a value set; R4 wants a code system"
                self._found.add("r4-coding", f"{where}.system", text)
        if self._model.has_code(coding) is False:
            self._unknown(coding, where)

    def _unknown(self, coding: JsonObject, where: str) -> None:
        code, system = show(coding.get("code")), show(coding.get("system"))
        text = f"{last(where)}.code is {code}, which the code system {system} does not have; correct one of them"
        self._found.add("r4-coding", f"{where}.code", text)


def _of(allowed: Mapping[str, Any], coding: JsonObject) -> bool:
    system, code = coding.get("system"), coding.get("code")
    if not isinstance(system, str) or system not in allowed:
        return False
    return allowed[system] is None or code in allowed[system]
