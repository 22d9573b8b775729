"""What the references of a submission may lead to outside of it: only to its own patient and that patient's data.

Which resources those are is decided before anything is judged: `literals` and `conditionals` name what is looked up, and
`faults` what is wrong with each reference. A resource of another patient, one that does not exist and one that the submitter
may not see have the same fault, so that nobody learns from it which of them it is.
"""

import re
from collections.abc import Callable, Mapping

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.reference_scope import literal_type
from cgm_proxy.core.submission.model import Submission, preview
from cgm_proxy.core.submission.verdicts import JudgingContext

#: A relative reference to one resource (https://hl7.org/fhir/R4/references.html#literal).
LITERAL = re.compile(r"(([A-Z][A-Za-z]{1,63})/[A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]{1,64})?")

#: A conditional reference (https://hl7.org/fhir/R4/http.html#trules).
CONDITIONAL = re.compile(r"([A-Z][A-Za-z]{1,63})\?.+", re.DOTALL)

#: An absolute URL, other than a URN, that is no search.
ELSEWHERE = re.compile(r"(?!(?i:urn:))[A-Za-z][A-Za-z0-9+.\-]*:[^?#]+")

#: Types that are not about one patient. What a reference to them leads to is left to the upstream. A person who is related to
#: another patient may well have taken part.
NOT_ABOUT_A_PATIENT = frozenset(
    {
        "DeviceDefinition",
        "DeviceMetric",
        "Endpoint",
        "HealthcareService",
        "Location",
        "Medication",
        "Organization",
        "Practitioner",
        "PractitionerRole",
        "RelatedPerson",
        "Substance",
    }
)

#: Types whose resources need not name a patient: a device may belong to the hospital.
PATIENT_OPTIONAL = frozenset({"CareTeam", "Device"})

#: The elements that name the patient whom a resource is about.
PATIENT_ELEMENTS = ("subject", "patient")


def literals(submission: Submission, localize: Callable[[str], str]) -> dict[str, list[str]]:
    """Map each stored resource, as `Type/id`, that must be looked up to the spellings of the references to it.

    These are the references to resources about patients, and the fullUrls by which entries are referenced: an entry must not
    be called like a stored resource.
    """
    found: dict[str, list[str]] = {}
    for reference, relative in submission.outer_references.items():
        literal = LITERAL.fullmatch(relative)
        if literal and literal[2] != "Patient" and literal[2] not in NOT_ABOUT_A_PATIENT:
            found.setdefault(literal[1], []).append(reference)
    for index in set(submission.internal_references.values()):
        full_url = submission.entries[index].full_url
        if full_url and (literal := LITERAL.fullmatch(localize(full_url))):
            found.setdefault(literal[1], []).append(full_url)
    return found


def conditionals(submission: Submission) -> dict[str, list[str]]:
    """Map each conditional reference that must be looked up, relative to this server, to its spellings."""
    found: dict[str, list[str]] = {}
    for reference, relative in submission.outer_references.items():
        conditional = CONDITIONAL.fullmatch(relative)
        if conditional and conditional[1] not in NOT_ABOUT_A_PATIENT:
            found.setdefault(relative, []).append(reference)
    return found


def belongs_to(resource: JsonObject, patient: str | None, localize: Callable[[str], str]) -> bool:
    """Whether a stored resource is the patient, or is about the patient."""
    resource_type = resource.get("resourceType")
    if resource_type == "Patient":
        return f"Patient/{resource.get('id')}" == patient
    given = [resource[name] for name in PATIENT_ELEMENTS if name in resource]
    if not given:
        return resource_type in PATIENT_OPTIONAL
    texts = [element.get("reference") if isinstance(element, dict) else None for element in given]
    return all(isinstance(text, str) and localize(text).partition("/_history/")[0] == patient for text in texts)


def as_stored(resolved: Mapping[str, str], localize: Callable[[str], str]) -> Callable[[str], str]:
    """Return what writes a reference as it is stored: `resolved` instead of a conditional one, and relative to this server."""
    return lambda reference: resolved.get(reference) or localize(reference)


def faults(submission: Submission, context: JudgingContext) -> dict[str, Issue]:
    """Return the references to what is no entry and must not be stored, each with its fault."""
    found = ((r, _fault(r, relative, submission, context)) for r, relative in submission.outer_references.items())
    return {reference: fault for reference, fault in found if fault}


def _fault(reference: str, relative: str, submission: Submission, context: JudgingContext) -> Issue | None:
    patient, shown = submission.patient, preview(reference)
    if relative[:4].lower() == "urn:":
        text = f"no entry has the fullUrl {shown}; add that entry, or reference a stored resource as Type/id"
        return Issue("reference-unknown", text, code="not-found")
    literal, conditional = LITERAL.fullmatch(relative), CONDITIONAL.fullmatch(relative)
    elsewhere = ELSEWHERE.fullmatch(relative) is not None
    named = literal[2] if literal else conditional[1] if conditional else literal_type(relative) if elsewhere else None
    if named == "Patient" and not conditional:
        if literal and literal[1] == patient:
            return None
        text = f"{shown} is another patient than {patient}; reference only this patient"
        return Issue("reference-other-patient", text, code="forbidden")
    if elsewhere or named in NOT_ABOUT_A_PATIENT:
        return None
    if named is None:
        text = f"{shown} is no reference that can be checked; write Type/id for a stored resource, or the fullUrl of an entry"
        return Issue("reference-unknown", text, code="value")
    if context.stored_resources is None:
        return None
    if reference in context.stored_resources or reference in context.allowed_references:
        return None
    if reference in context.excess_references:
        text = "the submission references more stored resources than are looked up; split it into several submissions"
        return Issue("references-too-many", text, code="too-costly")
    which = "exactly one stored resource" if conditional else "a stored resource"
    text = (
        f"{shown} does not lead to {which} of {patient}; reference only this patient's data, as Type/id or by fullUrl"
    )
    return Issue("reference-unknown", text, code="not-found")
