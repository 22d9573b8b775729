"""The guide's versions ("dialects") as a table: how each one marks its submissions, orders and schedules.

Sources: the compiled guides of http://argo.run/cgm and of HL7/cgm 0.1.0, 1.0.0-ballot and 1.0.0 (STU1). A new version is a row
of `DIALECTS` and a folder in `rules/`; no code branches on a version.
"""

from dataclasses import dataclass

LOINC = "http://loinc.org"

#: The operation of 1.0.0-ballot and later, at system level.
OPERATION = "$submit-cgm-bundle"
OPERATION_DEFINITION = "http://hl7.org/fhir/uv/cgm/OperationDefinition/submit-cgm-bundle"

#: What a conformant receiver lists in `CapabilityStatement.instantiates` (guide, 1.0.0).
RECEIVER_CAPABILITIES = "http://hl7.org/fhir/uv/cgm/CapabilityStatement/cgm-data-receiver"

#: Codes of single sensor readings in every version: mass and moles per volume.
READING_CODES = frozenset({(LOINC, "99504-3"), (LOINC, "14745-4"), (LOINC, "105272-9")})


@dataclass(frozen=True, slots=True)
class Dialect:
    """One version of the guide. Its `id` is also the name of its folder in `rules/` and its label in metrics."""

    id: str
    canonical_base: str
    """What the canonical URLs of its profiles, extensions and code systems begin with."""
    order_codes: tuple[str, ...]
    """Codes of its ServiceRequests, in `code_system`."""
    tags: tuple[str, ...] = ()
    """Codes in `code_system` that mark a submission in `Bundle.meta.tag`."""
    uses_operation: bool = False
    """Whether submissions are sent to the operation."""
    own_code_system: str | None = None
    """A code system that, of the dialects with the operation, only this one uses."""

    @property
    def code_system(self) -> str:
        """The code system of its tags and order codes."""
        return f"{self.canonical_base}/CodeSystem/cgm"

    def canonical_url(self, name: str) -> str:
        """Return the canonical URL of the profile or extension called `name`."""
        return f"{self.canonical_base}/StructureDefinition/{name}"


DIALECTS = (
    Dialect(
        "argo",
        "http://argo.run/cgm",
        order_codes=("cgm-submission-order",),
        # The tag was renamed on the day the guide was published; submitters use both.
        tags=("cgm-submission-bundle", "cgm-data-submission-bundle"),
    ),
    Dialect(
        "0.1.0",
        "http://hl7.org/uv/cgm",
        order_codes=("cgm-data-submission-standing-order",),
        tags=("cgm-data-submission-bundle",),
    ),
    Dialect(
        "1.0.0-ballot",
        "http://hl7.org/fhir/uv/cgm",
        order_codes=("cgm-data-submission-standing-order",),
        uses_operation=True,
        own_code_system="http://hl7.org/fhir/uv/cgm/CodeSystem/cgm-summary-codes-temporary",
    ),
    Dialect(
        "1.0.0",
        "http://hl7.org/fhir/uv/cgm",
        order_codes=("cgm-data-submission-standing-order", "cgm-data-submission-one-time-order"),
        uses_operation=True,
    ),
)

DIALECTS_BY_ID = {dialect.id: dialect for dialect in DIALECTS}

#: Dialects by the system and code of their submission tags.
DIALECTS_BY_TAG = {(dialect.code_system, tag): dialect for dialect in DIALECTS for tag in dialect.tags}

#: The dialect of CGM data that nothing marks as another dialect's.
DEFAULT_DIALECT = DIALECTS_BY_ID["1.0.0"]

#: The order codes of all dialects, as FHIR search tokens.
ORDER_TOKENS = tuple(
    dict.fromkeys(f"{dialect.code_system}|{code}" for dialect in DIALECTS for code in dialect.order_codes)
)
