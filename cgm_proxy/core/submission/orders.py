"""Standing and one-time orders: what a patient's ServiceRequests ask submitters for, in the form of any dialect."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.dates import FIRST, LAST, interval
from cgm_proxy.core.submission.dialects import DIALECTS, Dialect

#: Units of time, by their code in UCUM and in Timing. A month and a year have UCUM's mean length
#: (https://ucum.org/ucum#para-31).
TIME_UNITS = {
    "s": timedelta(seconds=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "wk": timedelta(weeks=1),
    "mo": timedelta(days=30.4375),
    "a": timedelta(days=365.25),
}

#: Names of the extensions that hold a schedule and a one-time specification.
SCHEDULE = "data-submission-schedule"
ONE_TIME = "data-submission-one-time-spec"

#: Longest duration that is read; a longer one is taken for a typing error and cut to this.
LONGEST_PERIOD = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one schedule of an order asks for: data of all `profiles` in each submission, at intervals of `period`.

    `lookback` is how far the data may reach back. A one-time specification is a schedule without a period, but with a `window`
    (start inclusive, end exclusive, both in UTC) that the data must fall in.
    """

    profiles: frozenset[str]
    period: timedelta | None = None
    lookback: timedelta | None = None
    window: tuple[datetime, datetime] | None = None


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """An active order, stored at `location`, with its schedules.

    It belongs to all `dialects` that have its code: the ballot and STU1 share one.
    """

    location: str
    dialects: frozenset[str]
    schedules: tuple[Schedule, ...]


def read_orders(resources: Iterable[JsonObject]) -> tuple[StandingOrder, ...]:
    """Return the active orders among ServiceRequests. Malformed parts of an order are skipped: they ask for nothing."""
    orders = []
    for resource in resources:
        if resource.get("resourceType") == "ServiceRequest" and resource.get("status") == "active":
            dialects = [dialect for dialect in DIALECTS if _has_order_code(resource, dialect)]
            if dialects:
                ids = frozenset(dialect.id for dialect in dialects)
                orders.append(
                    StandingOrder(f"ServiceRequest/{resource.get('id')}", ids, _schedules(resource, dialects))
                )
    return tuple(orders)


def _has_order_code(resource: JsonObject, dialect: Dialect) -> bool:
    return any(
        coding.get("system") == dialect.code_system and coding.get("code") in dialect.order_codes
        for coding in objects(_member(resource.get("code"), "coding"))
    )


def _schedules(resource: JsonObject, dialects: Iterable[Dialect]) -> tuple[Schedule, ...]:
    urls = {dialect.canonical_url(name) for dialect in dialects for name in (SCHEDULE, ONE_TIME)}
    return tuple(
        _schedule(objects(extension.get("extension")))
        for extension in objects(resource.get("extension"))
        if isinstance(url := extension.get("url"), str) and url in urls
    )


def _schedule(parts: list[JsonObject]) -> Schedule:
    """Return the schedule in the parts of its extension."""
    by_name = {str(part.get("url")): part for part in parts}
    profiles = [part.get("valueCanonical") for part in parts if part.get("url") == "submissionDataProfile"]
    # the guide's versions say how often in two ways: as a period, or as a Timing
    period = _quantity(_member(by_name.get("submissionPeriod"), "valueQuantity"))
    timing = _member(_member(by_name.get("submissionFrequency"), "valueTiming"), "repeat")
    return Schedule(
        profiles=frozenset(url.partition("|")[0] for url in profiles if isinstance(url, str)),
        period=period or _shortest_interval(timing),
        lookback=_quantity(_member(by_name.get("lookbackPeriod"), "valueQuantity")),
        window=_window(_member(by_name.get("timePeriod"), "valuePeriod")),
    )


def _quantity(quantity: Any) -> timedelta | None:
    return _duration(_member(quantity, "value"), _member(quantity, "code") or _member(quantity, "unit"))


def _shortest_interval(repeat: Any) -> timedelta | None:
    """Return the shortest time between two submissions: the period divided by the highest frequency."""
    period = _duration(_member(repeat, "period"), _member(repeat, "periodUnit"))
    frequency = _member(repeat, "frequencyMax") or _member(repeat, "frequency") or 1
    return period / frequency if period and isinstance(frequency, int) and frequency > 0 else period


def _duration(value: Any, unit: Any) -> timedelta | None:
    """Return a positive duration, at most `LONGEST_PERIOD`; None for anything else."""
    if not isinstance(value, int | Decimal) or not isinstance(unit, str) or unit not in TIME_UNITS or not value > 0:
        return None
    if value > LONGEST_PERIOD / TIME_UNITS[unit]:
        return LONGEST_PERIOD
    return TIME_UNITS[unit] * float(value) or None


def _window(period: Any) -> tuple[datetime, datetime] | None:
    """Return the time that a Period spans; without a start or an end it is open (https://hl7.org/fhir/R4/datatypes.html#Period)."""
    start, end = interval(_member(period, "start")), interval(_member(period, "end"))
    return (start[0] if start else FIRST, end[1] if end else LAST) if start or end else None


def _member(element: Any, name: str) -> Any:
    """Return a member of an object; None if `element` is something else."""
    return element.get(name) if isinstance(element, dict) else None
