"""The search parameters that the store supports, by resource type.

They are a part of FHIR's registry (https://hl7.org/fhir/R4/searchparameter-registry.html). To add one, add a row. A stored
resource is indexed by it when it is next written.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["token", "string", "date", "reference", "uri", "id", "updated"]


@dataclass(frozen=True, slots=True)
class SearchParameter:
    """A search parameter: the elements that it reads (dotted paths below the resource) and how values compare.

    `system` is the code system of an element of type code. `target` is the only type that the reference may have, if there
    is only one.
    """

    kind: Kind
    paths: tuple[str, ...] = ()
    system: str = ""
    target: str = ""

    @property
    def documented_type(self) -> str:
        """Its type in FHIR (https://hl7.org/fhir/R4/valueset-search-param-type.html)."""
        return {"id": "token", "updated": "date"}.get(self.kind, self.kind)


def _token(*paths: str, system: str = "") -> SearchParameter:
    return SearchParameter("token", paths, system=system)


def _reference(*paths: str, target: str = "") -> SearchParameter:
    return SearchParameter("reference", paths, target=target)


def _date(*paths: str) -> SearchParameter:
    return SearchParameter("date", paths)


def _string(*paths: str) -> SearchParameter:
    return SearchParameter("string", paths)


_SUBJECT = {"patient": _reference("subject", target="Patient"), "subject": _reference("subject")}
_PATIENT = {"patient": _reference("patient", target="Patient")}
_IDENTIFIER = {"identifier": _token("identifier")}
_CLINICAL = _IDENTIFIER | _SUBJECT | {"code": _token("code"), "encounter": _reference("encounter")}
_EFFECTIVE = _date("effectiveDateTime", "effectivePeriod", "effectiveTiming", "effectiveInstant")
_PERSON = _IDENTIFIER | {
    "active": _token("active"),
    "family": _string("name.family"),
    "gender": _token("gender", system="http://hl7.org/fhir/administrative-gender"),
    "given": _string("name.given"),
    "name": _string("name.family", "name.given", "name.text", "name.prefix", "name.suffix"),
}
_DEFINITION = _IDENTIFIER | {
    "name": _string("name"),
    "status": _token("status", system="http://hl7.org/fhir/publication-status"),
    "url": SearchParameter("uri", ("url",)),
    "version": _token("version"),
}

#: Parameters of every resource type.
COMMON = {
    "_id": SearchParameter("id"),
    "_lastUpdated": SearchParameter("updated"),
    "_profile": SearchParameter("uri", ("meta.profile",)),
    "_security": _token("meta.security"),
    "_tag": _token("meta.tag"),
}

#: Parameters by resource type. A type without a row has only the common ones.
PARAMETERS: dict[str, dict[str, SearchParameter]] = {
    "Bundle": _IDENTIFIER | {"timestamp": _date("timestamp"), "type": _token("type")},
    "CarePlan": _IDENTIFIER | _SUBJECT | {"category": _token("category"), "status": _token("status")},
    "CodeSystem": _DEFINITION,
    "Communication": _IDENTIFIER | _SUBJECT | {"sent": _date("sent"), "status": _token("status")},
    "Condition": _CLINICAL | {"category": _token("category"), "clinical-status": _token("clinicalStatus")},
    "Coverage": _IDENTIFIER | {"patient": _reference("beneficiary", target="Patient")},
    "Device": _IDENTIFIER
    | _PATIENT
    | {
        "device-name": _string("deviceName.name"),
        "manufacturer": _string("manufacturer"),
        "model": _string("modelNumber"),
        "organization": _reference("owner"),
        "status": _token("status", system="http://hl7.org/fhir/device-status"),
        "type": _token("type"),
        "udi-di": _string("udiCarrier.deviceIdentifier"),
    },
    "DiagnosticReport": _CLINICAL
    | {
        "based-on": _reference("basedOn"),
        "category": _token("category"),
        "conclusion": _token("conclusionCode"),
        "date": _EFFECTIVE,
        "issued": _date("issued"),
        "performer": _reference("performer"),
        "result": _reference("result"),
        "status": _token("status", system="http://hl7.org/fhir/diagnostic-report-status"),
    },
    "DocumentReference": _IDENTIFIER
    | _SUBJECT
    | {
        "category": _token("category"),
        "date": _date("date"),
        "status": _token("status", system="http://hl7.org/fhir/document-reference-status"),
        "type": _token("type"),
    },
    "Encounter": _IDENTIFIER
    | _SUBJECT
    | {"class": _token("class"), "date": _date("period"), "status": _token("status")},
    "Group": _IDENTIFIER | {"member": _reference("member.entity"), "type": _token("type")},
    "Location": _IDENTIFIER | {"name": _string("name", "alias"), "status": _token("status")},
    "MedicationRequest": _IDENTIFIER
    | _SUBJECT
    | {"code": _token("medicationCodeableConcept"), "status": _token("status")},
    "Observation": _CLINICAL
    | {
        "based-on": _reference("basedOn"),
        "category": _token("category"),
        "component-code": _token("component.code"),
        "data-absent-reason": _token("dataAbsentReason"),
        "date": _EFFECTIVE,
        "derived-from": _reference("derivedFrom"),
        "device": _reference("device"),
        "focus": _reference("focus"),
        "has-member": _reference("hasMember"),
        "method": _token("method"),
        "part-of": _reference("partOf"),
        "performer": _reference("performer"),
        "specimen": _reference("specimen"),
        "status": _token("status", system="http://hl7.org/fhir/observation-status"),
        "value-concept": _token("valueCodeableConcept"),
        "value-date": _date("valueDateTime", "valuePeriod"),
        "value-string": _string("valueString"),
    },
    "Organization": _IDENTIFIER
    | {
        "active": _token("active"),
        "name": _string("name", "alias"),
        "partof": _reference("partOf"),
        "type": _token("type"),
    },
    "Patient": _PERSON
    | {
        "birthdate": _date("birthDate"),
        "deceased": _token("deceasedBoolean"),
        "general-practitioner": _reference("generalPractitioner"),
        "link": _reference("link.other"),
        "organization": _reference("managingOrganization"),
        "telecom": _token("telecom"),
    },
    "PlanDefinition": _DEFINITION,
    "Practitioner": _PERSON,
    "PractitionerRole": _IDENTIFIER
    | {
        "active": _token("active"),
        "organization": _reference("organization"),
        "practitioner": _reference("practitioner"),
        "role": _token("code"),
    },
    "Procedure": _CLINICAL | {"date": _date("performedDateTime", "performedPeriod"), "status": _token("status")},
    "RelatedPerson": _PERSON | _PATIENT,
    "ServiceRequest": _CLINICAL
    | {
        "authored": _date("authoredOn"),
        "based-on": _reference("basedOn"),
        "category": _token("category"),
        "intent": _token("intent", system="http://hl7.org/fhir/request-intent"),
        "occurrence": _date("occurrenceDateTime", "occurrencePeriod", "occurrenceTiming"),
        "performer": _reference("performer"),
        "priority": _token("priority", system="http://hl7.org/fhir/request-priority"),
        "replaces": _reference("replaces"),
        "requester": _reference("requester"),
        "requisition": _token("requisition"),
        "status": _token("status", system="http://hl7.org/fhir/request-status"),
    },
    "Specimen": _IDENTIFIER | _SUBJECT | {"status": _token("status"), "type": _token("type")},
    "StructureDefinition": _DEFINITION | {"type": SearchParameter("uri", ("type",))},
    "Task": _IDENTIFIER
    | {
        "code": _token("code"),
        "focus": _reference("focus"),
        "owner": _reference("owner"),
        "patient": _reference("for", target="Patient"),
        "status": _token("status", system="http://hl7.org/fhir/task-status"),
        "subject": _reference("for"),
    },
    "ValueSet": _DEFINITION,
}

#: The resource types of R4 (https://hl7.org/fhir/R4/resourcelist.html) that can be stored.
RESOURCE_TYPES = frozenset(
    """
    Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse AuditEvent Basic
    Binary BiologicallyDerivedProduct BodyStructure Bundle CapabilityStatement CarePlan CareTeam CatalogEntry
    ChargeItem ChargeItemDefinition Claim ClaimResponse ClinicalImpression CodeSystem Communication
    CommunicationRequest CompartmentDefinition Composition ConceptMap Condition Consent Contract Coverage
    CoverageEligibilityRequest CoverageEligibilityResponse DetectedIssue Device DeviceDefinition DeviceMetric
    DeviceRequest DeviceUseStatement DiagnosticReport DocumentManifest DocumentReference
    EffectEvidenceSynthesis Encounter Endpoint EnrollmentRequest EnrollmentResponse EpisodeOfCare
    EventDefinition Evidence EvidenceVariable ExampleScenario ExplanationOfBenefit FamilyMemberHistory Flag
    Goal GraphDefinition Group GuidanceResponse HealthcareService ImagingStudy Immunization
    ImmunizationEvaluation ImmunizationRecommendation ImplementationGuide InsurancePlan Invoice Library
    Linkage List Location Measure MeasureReport Media Medication MedicationAdministration MedicationDispense
    MedicationKnowledge MedicationRequest MedicationStatement MedicinalProduct MedicinalProductAuthorization
    MedicinalProductContraindication MedicinalProductIndication MedicinalProductIngredient
    MedicinalProductInteraction MedicinalProductManufactured MedicinalProductPackaged
    MedicinalProductPharmaceutical MedicinalProductUndesirableEffect MessageDefinition MessageHeader
    MolecularSequence NamingSystem NutritionOrder Observation ObservationDefinition OperationDefinition
    OperationOutcome Organization OrganizationAffiliation Parameters Patient PaymentNotice
    PaymentReconciliation Person PlanDefinition Practitioner PractitionerRole Procedure Provenance
    Questionnaire QuestionnaireResponse RelatedPerson RequestGroup ResearchDefinition
    ResearchElementDefinition ResearchStudy ResearchSubject RiskAssessment RiskEvidenceSynthesis Schedule
    SearchParameter ServiceRequest Slot Specimen SpecimenDefinition StructureDefinition StructureMap
    Subscription Substance SubstanceNucleicAcid SubstancePolymer SubstanceProtein
    SubstanceReferenceInformation SubstanceSourceMaterial SubstanceSpecification SupplyDelivery SupplyRequest
    Task TerminologyCapabilities TestReport TestScript ValueSet VerificationResult VisionPrescription
    """.split()  # noqa: SIM905 -- a list of 146 lines is no easier to read
)


def parameters_of(resource_type: str) -> dict[str, SearchParameter]:
    """Return all parameters of a resource type, by name."""
    return COMMON | PARAMETERS.get(resource_type, {})
