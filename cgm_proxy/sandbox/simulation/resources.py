"""The resources of a submission as a conformant submitter writes them, in each dialect.

They are built with the models of fhir.resources, which check types, cardinalities and required elements.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

from fhir.resources.R4B.attachment import Attachment
from fhir.resources.R4B.bundle import BundleEntry, BundleEntryRequest
from fhir.resources.R4B.codeableconcept import CodeableConcept
from fhir.resources.R4B.coding import Coding
from fhir.resources.R4B.device import Device, DeviceDeviceName
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from fhir.resources.R4B.identifier import Identifier
from fhir.resources.R4B.meta import Meta
from fhir.resources.R4B.observation import Observation, ObservationComponent
from fhir.resources.R4B.period import Period
from fhir.resources.R4B.quantity import Quantity
from fhir.resources.R4B.reference import Reference
from fhir.resources.R4B.resource import Resource

from cgm_proxy.core.codec.fhir_models import as_json
from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID, LOINC
from cgm_proxy.sandbox.simulation.dialect_forms import CODES, FORMS, GLUCOSE, RANGES, Units
from cgm_proxy.sandbox.simulation.pdf import one_page
from cgm_proxy.sandbox.simulation.readings import START, Figures, molar

#: How entries refer to one another: by `urn:uuid:`, by absolute URL, or by type and id relative to such a URL.
ReferenceStyle = Literal["urn", "url", "relative"]

UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_NO_URL = "urn:uuid:00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class SimulatedSubmitter:
    """Writes the entries of one submission. The same content always has the same UUID, and so the same bytes."""

    dialect: str
    patient: str
    """Reference of the patient, as `Patient/id`."""
    units: Units = "mass"
    reference_style: ReferenceStyle = "urn"

    def device(self, serial: str = "456789") -> JsonObject:
        """Return the entry of the sensor with this serial number, which identifies it."""
        return self._entry(
            Device(
                meta=_meta(self.dialect, "cgm-device"),
                identifier=[Identifier(system="http://acme.example/cgm/serial", value=f"ACME-{serial}")],
                manufacturer="Acme",
                serialNumber=serial,
                deviceName=[DeviceDeviceName(name="Acme CGM System", type="user-friendly-name")],
                patient=Reference(reference=self.patient),
            )
        )

    def reading(
        self,
        instant: datetime,
        mg_per_dl: int,
        device: JsonObject | None = None,
        *,
        number: int = 0,
        unit: str | None = None,
    ) -> JsonObject:
        """Return the entry of one reading.

        `device` is the entry of its sensor. `number` distinguishes equal readings of a submission. `unit` replaces the
        right unit, to make the reading faulty.
        """
        # Building an entry with the models takes about 0.5 ms, 2 s for two weeks of readings. One reading is built, and the
        # others are copies of it with another time and value.
        entry = decode(_reading_template(self, self._reference(device) if device else None))
        entry["resource"]["effectiveDateTime"] = fhir_instant(instant)
        quantity = entry["resource"]["valueQuantity"]
        quantity["value"] = mg_per_dl if self.units == "mass" else molar(mg_per_dl)
        if unit:
            quantity["unit"] = unit
        return self._with_url(entry, number)

    def members(self, figures: Figures) -> list[JsonObject]:
        """Return the entries of the Observations that a summary has as members."""
        form = FORMS[self.dialect]
        profile, measure = form.means[self.units]
        values = {
            "gmi": self._percent(figures.gmi),
            "coefficient-of-variation": self._percent(figures.cv),
            "days-of-wear": _quantity(figures.days_of_wear, "days", "d"),
            "sensor-active-percentage": self._percent(figures.sensor_active),
        }
        return [
            self._measure(profile, measure, figures, valueQuantity=self._mean(figures)),
            *self._times_in_ranges(figures),
            *(
                self._measure(f"cgm-summary-{name}", name, figures, valueQuantity=value)
                for name, value in values.items()
            ),
        ]

    def summary(self, figures: Figures, members: Iterable[JsonObject]) -> JsonObject:
        """Return the entry of the summary that has `members`, which are entries."""
        content: dict[str, Any] = {"hasMember": [Reference(reference=self._reference(member)) for member in members]}
        if FORMS[self.dialect].summary_value:
            # argo binds this unit to mg/dL or mmol/L, unlike the unit of every other quantity.
            content["valueQuantity"] = self._mean(figures, unit=GLUCOSE[self.units][1])
        return self._measure("cgm-summary", "summary", figures, **content)

    def report(self, figures: Figures, results: Sequence[JsonObject] = ()) -> JsonObject:
        """Return the entry of the report with the summary as a PDF; `results` are entries."""
        return self._entry(
            DiagnosticReport(
                meta=_meta(self.dialect, "cgm-summary-pdf"),
                status="final",
                category=[_concept(f"{TERMINOLOGY}/v2-0074", "LAB")],
                code=self._code("summary"),
                subject=Reference(reference=self.patient),
                effectivePeriod=Period(start=figures.start, end=figures.end),
                issued=figures.end,
                result=[Reference(reference=self._reference(result)) for result in results] or None,
                presentedForm=[Attachment(contentType="application/pdf", data=b64encode(self._pdf(figures)))],
            )
        )

    def _reference(self, entry: JsonObject) -> str:
        full_url = str(entry["fullUrl"])
        return "/".join(full_url.split("/")[-2:]) if self.reference_style == "relative" else full_url

    def _entry(self, resource: Resource) -> JsonObject:
        return self._with_url(_create(resource))

    def _with_url(self, entry: JsonObject, number: int = 0) -> JsonObject:
        """Set the entry's fullUrl, and the id of its resource where that is part of the URL."""
        resource = entry["resource"]
        kind, name = resource["resourceType"], str(uuid5(NAMESPACE_URL, f"{self.dialect} {number} {resource}"))
        if self.reference_style == "urn":
            return entry | {"fullUrl": f"urn:uuid:{name}"}
        resource = {"resourceType": kind, "id": name} | resource
        return entry | {"fullUrl": f"https://submitter.example/fhir/{kind}/{name}", "resource": resource}

    def _measure(self, profile: str, measure: str, figures: Figures, **content: Any) -> JsonObject:
        period = Period(start=figures.start, end=figures.end)
        return self._entry(_observation(self, profile, self._code(measure), effectivePeriod=period, **content))

    def _times_in_ranges(self, figures: Figures) -> list[JsonObject]:
        shares = [(name, self._percent(share)) for name, share in zip(RANGES, figures.ranges, strict=True)]
        if FORMS[self.dialect].separate_ranges:
            return [self._measure(f"cgm-summary-{name}", name, figures, valueQuantity=share) for name, share in shares]
        components = [ObservationComponent(code=self._code(name), valueQuantity=share) for name, share in shares]
        return [self._measure("cgm-summary-times-in-ranges", "times-in-ranges", figures, component=components)]

    def _code(self, measure: str) -> CodeableConcept:
        temporary, loinc = CODES[measure]
        codings = {
            "temporary": Coding(
                system=f"{DIALECTS_BY_ID[self.dialect].canonical_base}/CodeSystem/cgm-summary-codes-temporary",
                code=temporary,
            ),
            "loinc": Coding(system=LOINC, code=loinc),
        }
        return CodeableConcept(coding=[codings[system] for system in FORMS[self.dialect].systems])

    def _mean(self, figures: Figures, unit: str | None = None) -> Quantity:
        mean = figures.mean if self.units == "mass" else molar(figures.mean)
        lower_case, code = GLUCOSE[self.units]
        return _quantity(mean, unit or lower_case, code)

    def _percent(self, value: Decimal) -> Quantity:
        return _quantity(value, "%", FORMS[self.dialect].percent)

    def _pdf(self, figures: Figures) -> bytes:
        mean = self._mean(figures)
        shares = ", ".join(
            f"{name.removeprefix('time-in-').replace('-', ' ')} {share} %"
            for name, share in zip(RANGES, figures.ranges, strict=True)
        )
        lines = (
            f"{fhir_instant(figures.start)} to {fhir_instant(figures.end)}, {figures.count:,} readings",
            "Simulated data; this is no person's report.",
            f"Mean glucose: {mean.value} {mean.code}",
            f"Glucose management indicator (GMI): {figures.gmi} %",
            f"Coefficient of variation: {figures.cv} %",
            f"Days of wear: {figures.days_of_wear}; sensor active: {figures.sensor_active} %",
            f"Time in ranges: {shares}",
        )
        return one_page("Continuous glucose monitoring summary", lines, figures.ranges)


def fhir_instant(moment: datetime) -> str:
    """Return an aware datetime as a FHIR instant, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


@lru_cache(maxsize=256)
def _reading_template(submitter: SimulatedSubmitter, device: str | None) -> bytes:
    """Return the entry of a reading as JSON, without its URL, for `SimulatedSubmitter.reading` to copy."""
    profile, code = FORMS[submitter.dialect].readings[submitter.units]
    reading = _observation(
        submitter,
        profile,
        _concept(LOINC, code),
        effectiveDateTime=START,
        valueQuantity=_quantity(0, *GLUCOSE[submitter.units]),
        device=Reference(reference=device) if device else None,
    )
    return encode(_create(reading))


def _observation(submitter: SimulatedSubmitter, profile: str, code: CodeableConcept, **content: Any) -> Observation:
    return Observation(
        meta=_meta(submitter.dialect, profile),
        status="final",
        category=[_concept(f"{TERMINOLOGY}/observation-category", "laboratory")],
        code=code,
        subject=Reference(reference=submitter.patient),
        **content,
    )


def _create(resource: Resource) -> JsonObject:
    """Return the Bundle entry that creates a resource; its fullUrl is still to be set."""
    request = BundleEntryRequest(method="POST", url=resource.get_resource_type())
    return as_json(BundleEntry(fullUrl=_NO_URL, resource=resource, request=request))


def _meta(dialect: str, profile: str) -> Meta:
    return Meta(profile=[DIALECTS_BY_ID[dialect].canonical_url(profile)])


def _concept(system: str, code: str) -> CodeableConcept:
    return CodeableConcept(coding=[Coding(system=system, code=code)])


def _quantity(value: int | Decimal, unit: str, code: str) -> Quantity:
    return Quantity(value=Decimal(value), unit=unit, system=UCUM, code=code)
