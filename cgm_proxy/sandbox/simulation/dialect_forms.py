"""The profiles, codes and units that a conformant submitter uses, by dialect.

`FORMS` says where the dialects differ; `CODES` has the codes of the measures of a summary.
"""

from dataclasses import dataclass
from typing import Literal

#: Whether glucose is a mass (mg/dL) or an amount of substance (mmol/L) per volume.
Units = Literal["mass", "molar"]

#: `unit` and UCUM `code` of glucose. The guide fixes the unit in lower case.
GLUCOSE: dict[str, tuple[str, str]] = {"mass": ("mg/dl", "mg/dL"), "molar": ("mmol/l", "mmol/L")}

#: Each measure's code in the guide's temporary code system, and in LOINC.
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
class DialectForm:
    """The form of the resources in one dialect, where dialects differ."""

    readings: dict[str, tuple[str, str]]
    """Profile and LOINC code of a reading, by units."""
    means: dict[str, tuple[str, str]]
    """Profile and measure of the mean glucose, by units."""
    systems: tuple[Literal["temporary", "loinc"], ...]
    """Code systems of the measures."""
    percent: str = "%"
    """`code` of percentages; argo fixes "d"."""
    separate_ranges: bool = False
    """Whether each range is an Observation of its own, and not a component of one."""
    summary_value: bool = False
    """Whether the summary has the mean glucose as its value."""


def _per_volume(molar_code: str, *systems: Literal["temporary", "loinc"]) -> DialectForm:
    mass, moles = "mass-per-volume", "moles-per-volume"
    return DialectForm(
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
    "argo": DialectForm(
        readings={"mass": ("cgm-sensor-reading-mass", "99504-3"), "molar": ("cgm-sensor-reading-molar", "14745-4")},
        means={unit: (f"cgm-summary-mean-glucose-{unit}", "mean-glucose") for unit in GLUCOSE},
        systems=("temporary",),
        percent="d",
        separate_ranges=True,
        summary_value=True,
    ),
    "0.1.0": _per_volume("14745-4", "temporary", "loinc"),
    "1.0.0-ballot": _per_volume("105272-9", "temporary", "loinc"),
    "1.0.0": _per_volume("105272-9", "loinc"),
}
