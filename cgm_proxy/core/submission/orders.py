"""Standing and one-time orders: what a patient's ServiceRequests ask submitters for, in any dialect's form."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.dates import FIRST, LAST, interval
from cgm_proxy.core.submission.dialects import DIALECTS, ORDER_TOKENS, Dialect

#: UCUM's and Timing's units of time; a month and a year as in UCUM's means (https://ucum.org/ucum#para-31), days.
TIME_UNITS = {
    "s": timedelta(seconds=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "wk": timedelta(weeks=1),
    "mo": timedelta(days=30.4375),
    "a": timedelta(days=365.25),
}

SCHEDULE = "data-submission-schedule"
ONE_TIME = "data-submission-one-time-spec"

#: Longest period that is believed; anything longer is a slip of the pen (days).
LONGEST_PERIOD = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one schedule of an order demands: `profiles` in each submission, every `period`, reaching back `lookback`.

    A one-time specification is a schedule with a `window` (start inclusive, end exclusive, both in UTC) and no period.
    """

    profiles: frozenset[str]
    period: timedelta | None = None
    lookback: timedelta | None = None
    window: tuple[datetime, datetime] | None = None


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """An active order, as stored at `location`, with its schedules; in several dialects where they share its code."""

    location: str
    dialects: frozenset[str]
    schedules: tuple[Schedule, ...]


def read_orders(resources: Iterable[JsonObject]) -> tuple[StandingOrder, ...]:
    """Read the active orders among ServiceRequests; what is malformed in one is left out, since it can ask for nothing."""
    return tuple(found for resource in resources if (found := _order(resource)))


def _order(resource: JsonObject) -> StandingOrder | None:
    if resource.get("resourceType") != "ServiceRequest" or resource.get("status") != "active":
        return None
    dialects = [dialect for dialect in DIALECTS if _coded(resource, dialect)]
    if not dialects:
        return None
    schedules = tuple(_schedules(resource, {dialect.canonical_base for dialect in dialects}))
    return StandingOrder(f"ServiceRequest/{resource.get('id')}", frozenset(d.id for d in dialects), schedules)


def _coded(resource: JsonObject, dialect: Dialect) -> bool:
    code = resource.get("code")
    tokens = {f"{coding.get('system')}|{coding.get('code')}" for coding in objects(_field(code, "coding"))}
    return any(
        f"{dialect.code_system}|{order}" in tokens for order in dialect.order_codes if tokens & set(ORDER_TOKENS)
    )


def _schedules(resource: JsonObject, bases: set[str]) -> Iterator[Schedule]:
    forms = {f"{base}/StructureDefinition/{name}" for base in bases for name in (SCHEDULE, ONE_TIME)}
    for extension in objects(resource.get("extension")):
        if isinstance(url := extension.get("url"), str) and url in forms:
            yield _schedule(objects(extension.get("extension")))


def _schedule(parts: list[JsonObject]) -> Schedule:
    named = {str(part.get("url")): part for part in parts}
    profiles = (part.get("valueCanonical") for part in parts if part.get("url") == "submissionDataProfile")
    timing = _field(_field(named.get("submissionFrequency"), "valueTiming"), "repeat")
    return Schedule(
        profiles=frozenset(url.partition("|")[0] for url in profiles if isinstance(url, str)),
        period=_quantity(_field(named.get("submissionPeriod"), "valueQuantity")) or _repeat(timing),
        lookback=_quantity(_field(named.get("lookbackPeriod"), "valueQuantity")),
        window=_window(_field(named.get("timePeriod"), "valuePeriod")),
    )


def _quantity(quantity: Any) -> timedelta | None:
    return _duration(_field(quantity, "value"), _field(quantity, "code") or _field(quantity, "unit"))


def _repeat(repeat: Any) -> timedelta | None:
    """Give the shortest time between two submissions: the period shared out among the most frequent repetitions."""
    period = _duration(_field(repeat, "period"), _field(repeat, "periodUnit"))
    frequency = _field(repeat, "frequencyMax") or _field(repeat, "frequency") or 1
    return period / frequency if period and isinstance(frequency, int) and frequency > 0 else period


def _duration(value: Any, unit: Any) -> timedelta | None:
    if not isinstance(value, int | Decimal) or not isinstance(unit, str) or unit not in TIME_UNITS or not value > 0:
        return None
    if value > LONGEST_PERIOD / TIME_UNITS[unit]:
        return LONGEST_PERIOD
    return TIME_UNITS[unit] * float(value) or None


def _window(period: Any) -> tuple[datetime, datetime] | None:
    """Give a Period's span; one without start or end is open there (https://hl7.org/fhir/R4/datatypes.html#Period)."""
    start, end = interval(_field(period, "start")), interval(_field(period, "end"))
    return (start[0] if start else FIRST, end[1] if end else LAST) if start or end else None


def _field(element: Any, name: str) -> Any:
    return element.get(name) if isinstance(element, dict) else None
