"""The resources of a submission as a conformant submitter writes them, in each dialect."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal
from uuid import NAMESPACE_URL, uuid5

from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID, LOINC
from cgm_proxy.sandbox.simulation.pdf import one_page
from cgm_proxy.sandbox.simulation.readings import Figures, molar

Units = Literal["mass", "molar"]
By = Literal["urn", "url", "relative"]

UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"

#: `unit` (the guide pins it lower-case) and UCUM `code` of glucose.
GLUCOSE: dict[str, tuple[str, str]] = {"mass": ("mg/dl", "mg/dL"), "molar": ("mmol/l", "mmol/L")}

#: Code of each measure of a summary in the guide's temporary code system, and in LOINC.
CODES = {
    "summary": ("cgm-summary", "107931-8"),
    "mean-glucose": ("mean-glucose", "97507-8"),
    "mean-glucose-mass": ("mean-glucose-mass-per-volume", "97507-8"),
    "mean-glucose-molar": ("mean-glucose-moles-per-volume", "105273-7"),
    "times-in-ranges": ("times-in-ranges", "106793-3"),
    "time-in-very-low": ("time-in-very-low", "104642-4"),
    "time-in-low": ("time-in-low", "104641-6"),
    "time-in-target": ("time-in-target", "97510-2"),
    "time-in-high": ("time-in-high", "104640-8"),
    "time-in-very-high": ("time-in-very-high", "104639-0"),
    "gmi": ("gmi", "97506-0"),
    "coefficient-of-variation": ("cv", "104638-2"),
    "days-of-wear": ("days-of-wear", "104636-6"),
    "sensor-active-percentage": ("sensor-active-percentage", "104637-4"),
}
RANGES = ("time-in-very-low", "time-in-low", "time-in-target", "time-in-high", "time-in-very-high")


@dataclass(frozen=True, slots=True)
class Form:
    """What a dialect's resources look like, where dialects differ."""

    readings: dict[str, tuple[str, str]]
    """Profile and LOINC code of a reading, by units."""
    means: dict[str, tuple[str, str]]
    """Profile and measure of the mean glucose, by units."""
    systems: tuple[Literal["temporary", "loinc"], ...]
    """Code systems of the measures."""
    percent: str = "%"
    """`code` of percentages; argo fixes "d"."""
    ranges_apart: bool = False
    """Whether each range is an Observation of its own, or a component of one."""
    summary_value: bool = False
    """Whether the summary has the mean as its value."""


def _per_volume(molar_code: str, *systems: Literal["temporary", "loinc"]) -> Form:
    mass, moles = "mass-per-volume", "moles-per-volume"
    return Form(
        readings={
            "mass": (f"cgm-sensor-reading-{mass}", "99504-3"),
            "molar": (f"cgm-sensor-reading-{moles}", molar_code),
        },
        means={
            "mass": (f"cgm-summary-mean-glucose-{mass}", "mean-glucose-mass"),
            "molar": (f"cgm-summary-mean-glucose-{moles}", "mean-glucose-molar"),
        },
        systems=systems,
    )


FORMS = {
    "argo": Form(
        readings={"mass": ("cgm-sensor-reading-mass", "99504-3"), "molar": ("cgm-sensor-reading-molar", "14745-4")},
        means={unit: (f"cgm-summary-mean-glucose-{unit}", "mean-glucose") for unit in GLUCOSE},
        systems=("temporary",),
        percent="d",
        ranges_apart=True,
        summary_value=True,
    ),
    "0.1.0": _per_volume("14745-4", "temporary", "loinc"),
    "1.0.0-ballot": _per_volume("105272-9", "temporary", "loinc"),
    "1.0.0": _per_volume("105272-9", "loinc"),
}


@dataclass(frozen=True, slots=True)
class SimulatedSubmitter:
    """Writes the entries of one submission. The same content always has the same UUID, and so the same bytes."""

    dialect: str
    patient: str
    """Reference of the patient, as `Patient/id`."""
    units: Units = "mass"
    by: By = "urn"
    """How entries refer to one another: by `urn:uuid:`, by absolute URL, or by type and id relative to such a URL."""

    def entry(self, resource: JsonObject, number: int = 0) -> JsonObject:
        """Make the Bundle entry that creates `resource`; `number` tells equal resources of a submission apart."""
        kind = resource["resourceType"]
        made = str(uuid5(NAMESPACE_URL, f"{self.dialect} {number} {resource}"))
        request = {"method": "POST", "url": kind}
        if self.by == "urn":
            return {"fullUrl": f"urn:uuid:{made}", "resource": resource, "request": request}
        full_url = f"https://submitter.example/fhir/{kind}/{made}"
        return {"fullUrl": full_url, "resource": {"resourceType": kind, "id": made} | resource, "request": request}

    def refer(self, entry: JsonObject) -> JsonObject:
        """Make the Reference to another entry of the submission."""
        full_url = entry["fullUrl"]
        return {"reference": "/".join(full_url.split("/")[-2:]) if self.by == "relative" else full_url}

    def device(self) -> JsonObject:
        """Write the sensor, which its serial number identifies."""
        return self.entry(
            {
                "resourceType": "Device",
                "meta": self._profile("cgm-device"),
                "identifier": [{"system": "http://acme.example/cgm/serial", "value": "ACME-456789"}],
                "manufacturer": "Acme",
                "serialNumber": "456789",
                "deviceName": [{"name": "Acme CGM System", "type": "user-friendly-name"}],
                "patient": {"reference": self.patient},
            }
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
        """Write one reading; `unit` replaces the right one, to make it faulty."""
        profile, code = FORMS[self.dialect].readings[self.units]
        resource = self._observation(profile, {"coding": [{"system": LOINC, "code": code}]})
        resource["effectiveDateTime"] = fhir_instant(instant)
        value = self._glucose(mg_per_dl if self.units == "mass" else molar(mg_per_dl))
        resource["valueQuantity"] = value | ({"unit": unit} if unit else {})
        return self.entry(resource | ({"device": self.refer(device)} if device else {}), number)

    def members(self, figures: Figures) -> list[JsonObject]:
        """Write the member Observations of a summary."""
        form = FORMS[self.dialect]
        profile, measure = form.means[self.units]
        return [
            self._measure(profile, measure, figures, valueQuantity=self._mean(figures)),
            *self._times_in_ranges(figures),
            *(
                self._measure(f"cgm-summary-{name}", name, figures, valueQuantity=value)
                for name, value in (
                    ("gmi", self._percent(figures.gmi)),
                    ("coefficient-of-variation", self._percent(figures.cv)),
                    ("days-of-wear", _quantity(figures.days_of_wear, "days", "d")),
                    ("sensor-active-percentage", self._percent(figures.sensor_active)),
                )
            ),
        ]

    def summary(self, figures: Figures, members: Iterable[JsonObject]) -> JsonObject:
        """Write the summary that has `members`, which are entries."""
        value: JsonObject = {}
        if FORMS[self.dialect].summary_value:
            # argo binds this unit to mg/dL or mmol/L, unlike the unit of every other quantity.
            value["valueQuantity"] = self._mean(figures) | {"unit": GLUCOSE[self.units][1]}
        return self._measure("cgm-summary", "summary", figures, **value, hasMember=[self.refer(m) for m in members])

    def report(self, figures: Figures, results: Sequence[JsonObject] = ()) -> JsonObject:
        """Write the report with the summary as a PDF; `results` are entries."""
        resource: JsonObject = {
            "resourceType": "DiagnosticReport",
            "meta": self._profile("cgm-summary-pdf"),
            "status": "final",
            "category": [{"coding": [{"system": f"{TERMINOLOGY}/v2-0074", "code": "LAB"}]}],
            "code": self._code("summary"),
            "subject": {"reference": self.patient},
            "effectivePeriod": _period(figures),
            "issued": fhir_instant(figures.end),
            "presentedForm": [{"contentType": "application/pdf", "data": self._pdf(figures)}],
        }
        return self.entry(resource | ({"result": [self.refer(entry) for entry in results]} if results else {}))

    def _observation(self, profile: str, code: JsonObject) -> JsonObject:
        return {
            "resourceType": "Observation",
            "meta": self._profile(profile),
            "status": "final",
            "category": [{"coding": [{"system": f"{TERMINOLOGY}/observation-category", "code": "laboratory"}]}],
            "code": code,
            "subject": {"reference": self.patient},
        }

    def _measure(self, profile: str, measure: str, figures: Figures, **content: object) -> JsonObject:
        resource = self._observation(profile, self._code(measure))
        return self.entry(resource | {"effectivePeriod": _period(figures)} | content)

    def _times_in_ranges(self, figures: Figures) -> list[JsonObject]:
        shares = [(name, self._percent(share)) for name, share in zip(RANGES, figures.ranges, strict=True)]
        if FORMS[self.dialect].ranges_apart:
            return [self._measure(f"cgm-summary-{name}", name, figures, valueQuantity=share) for name, share in shares]
        components = [{"code": self._code(name), "valueQuantity": share} for name, share in shares]
        return [self._measure("cgm-summary-times-in-ranges", "times-in-ranges", figures, component=components)]

    def _profile(self, name: str) -> JsonObject:
        return {"profile": [DIALECTS_BY_ID[self.dialect].canonical_url(name)]}

    def _code(self, measure: str) -> JsonObject:
        temporary, loinc = CODES[measure]
        codings = {
            "temporary": {
                "system": f"{DIALECTS_BY_ID[self.dialect].canonical_base}/CodeSystem/cgm-summary-codes-temporary",
                "code": temporary,
            },
            "loinc": {"system": LOINC, "code": loinc},
        }
        return {"coding": [codings[system] for system in FORMS[self.dialect].systems]}

    def _glucose(self, value: int | Decimal) -> JsonObject:
        return _quantity(value, *GLUCOSE[self.units])

    def _mean(self, figures: Figures) -> JsonObject:
        return self._glucose(figures.mean if self.units == "mass" else molar(figures.mean))

    def _percent(self, value: Decimal) -> JsonObject:
        return _quantity(value, "%", FORMS[self.dialect].percent)

    def _pdf(self, figures: Figures) -> str:
        mean = self._mean(figures)
        shares = ", ".join(
            f"{name.removeprefix('time-in-').replace('-', ' ')} {share} %"
            for name, share in zip(RANGES, figures.ranges, strict=True)
        )
        lines = (
            f"{fhir_instant(figures.start)} to {fhir_instant(figures.end)}, {figures.count:,} readings",
            "Simulated data; this is no person's report.",
            f"Mean glucose: {mean['value']} {mean['code']}",
            f"Glucose management indicator (GMI): {figures.gmi} %",
            f"Coefficient of variation: {figures.cv} %",
            f"Days of wear: {figures.days_of_wear}; sensor active: {figures.sensor_active} %",
            f"Time in ranges: {shares}",
        )
        return b64encode(one_page("Continuous glucose monitoring summary", lines, figures.ranges)).decode("ascii")


def fhir_instant(moment: datetime) -> str:
    """Write an aware moment as FHIR's instant, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _period(figures: Figures) -> JsonObject:
    return {"start": fhir_instant(figures.start), "end": fhir_instant(figures.end)}


def _quantity(value: int | Decimal, unit: str, code: str) -> JsonObject:
    return {"value": value, "unit": unit, "system": UCUM, "code": code}
