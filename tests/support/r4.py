"""The shipped definitions of R4, and XML read and written by them."""

from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.rulekit.loading import r4_model

#: Deepest nesting that tests read, as in the default settings.
DEPTH = 64

R4 = r4_model()
FHIR_XML = FhirXml(R4, DEPTH)
