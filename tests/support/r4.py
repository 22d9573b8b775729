"""The shipped definitions of R4: XML read and written by them, and the faults that they find in a resource."""

from typing import Any

from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.r4.reference_scope import ReferenceResolver, Scope, resolve_nothing
from cgm_proxy.core.r4.validator import validate
from cgm_proxy.rulekit.loading import r4_model

#: Deepest nesting that tests read, as in the default settings.
DEPTH = 64

R4 = r4_model()
FHIR_XML = FhirXml(R4, DEPTH)


def faults(resource: dict[str, Any], resolve: ReferenceResolver = resolve_nothing) -> list[tuple[str, str, str]]:
    """Return the rule, path and message of each fault that the base validation finds."""
    found = validate(R4, Scope(resource, resolve), resource, resource["resourceType"])
    return [(issue.rule, issue.expression or "", issue.text) for issue in found.issues]
