"""Judge by the patient's orders: what they ask for, whether it is whole, timely and not too often; policies weigh it."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.submission.dates import interval
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.orders import Schedule
from cgm_proxy.core.submission.verdicts import JudgingContext, Policy, Verdict


class _Times(msgspec.Struct, rename="camel", gc=False):
    """What is read of a resource here: the rest is passed over."""

    effective_date_time: Any = None
    effective_period: Any = None


_times = msgspec.json.Decoder(_Times)


def schedules(submission: Submission, context: JudgingContext) -> list[Schedule]:
    """Give what the patient's orders ask for in the submission's dialect."""
    orders = [order for order in context.orders if submission.dialect.id in order.dialects]
    return [schedule for order in orders for schedule in order.schedules if schedule.profiles]


def solicited(verdicts: Iterable[Verdict], asked: list[Schedule], context: JudgingContext) -> Iterator[Verdict]:
    """Add to each verdict whether an order asks for the entry, and for its time."""
    asking_for: dict[tuple[str, ...], list[Schedule]] = {}
    for verdict in verdicts:
        if not verdict.profiles:
            yield verdict
            continue
        if verdict.profiles not in asking_for:
            asking_for[verdict.profiles] = [one for one in asked if _asks(one, verdict, context)]
        yield _solicited(verdict, asking_for[verdict.profiles], asked, context)


def _solicited(verdict: Verdict, asking: list[Schedule], asked: list[Schedule], context: JudgingContext) -> Verdict:
    policies, kind = context.policies, verdict.entry.type
    timely = [one for one in asking if _timely(one, verdict.entry, context.now)]
    if not asking or (not timely and all(one.window for one in asking)):
        wanted = sorted({name.rpartition("/")[2] for one in asked for name in one.profiles})
        text = f"no active order of the patient asks for {_names(verdict.profiles)} at this time; asked for: {', '.join(wanted)}"
        return _with(verdict, policies.unsolicited, Issue("order-unsolicited", text, kind, code="business-rule"))
    if not timely:
        text = "the entry is older than the order's lookback period reaches; send what lies within it"
        return _with(verdict, policies.outside_lookback, Issue("order-lookback", text, kind, code="business-rule"))
    return verdict


def _asks(schedule: Schedule, verdict: Verdict, context: JudgingContext) -> bool:
    if verdict.entry.type == "Device":
        return True
    asked = set(schedule.profiles)
    for profile in schedule.profiles:
        asked |= context.rules.made_of(profile)
    return not asked.isdisjoint(verdict.profiles)


def _effective(entry: Entry) -> tuple[datetime, datetime] | None:
    times = _times.decode(entry.encoded)
    if span := interval(times.effective_date_time):
        return span
    bounds = times.effective_period if isinstance(times.effective_period, dict) else {}
    start, end = interval(bounds.get("start")), interval(bounds.get("end"))
    return (start[0], end[1]) if start and end else None


def _timely(schedule: Schedule, entry: Entry, now: datetime) -> bool:
    if schedule.window is None and schedule.lookback is None:
        return True
    span = _effective(entry)
    if span is None:
        return True
    if schedule.window:
        return span[0] < schedule.window[1] and span[1] > schedule.window[0]
    return schedule.lookback is None or span[1] >= now - schedule.lookback


def whole(
    submission: Submission, present: Collection[str], schedules: list[Schedule], context: JudgingContext
) -> Iterator[Issue]:
    """Judge the submission as a whole: complete by at least one schedule, and not too often.

    `present` are its entries' profiles. What was refused counts as present: its own issues say what to mend.
    """
    policies = context.policies
    if not schedules:
        if policies.no_order != "accept":
            text = f"the patient has no active order for CGM data of the guide's version {submission.dialect.id}"
            yield _weigh(policies.no_order, Issue("order-none", text, code="business-rule"))
        return
    lacking = [schedule.profiles.difference(present) for schedule in schedules]
    if all(lacking) and policies.incomplete != "accept":
        text = "no schedule of the patient's orders is satisfied whole; add " + " or ".join(
            sorted({_names(names) for names in lacking})
        )
        yield _weigh(policies.incomplete, Issue("order-incomplete", text, "Bundle.entry", code="business-rule"))
    if (wait := _too_early(schedules, context)) and policies.too_often != "accept":
        text = f"the order's period since the last submission ends in {_human(wait)}"
        yield _weigh(policies.too_often, Issue("order-too-often", text, code="throttled"))


def _too_early(schedules: list[Schedule], context: JudgingContext) -> timedelta | None:
    periods = [schedule.period for schedule in schedules if schedule.period]
    if not periods or len(periods) < len(schedules) or context.last_submission is None:
        return None
    wait = context.last_submission + min(periods) - context.now
    return wait if wait > timedelta() else None


def retry_after(schedules: list[Schedule], context: JudgingContext) -> timedelta | None:
    """Give how long to wait, where the policy rejects what comes too early."""
    return _too_early(schedules, context) if context.policies.too_often == "reject" else None


def _with(verdict: Verdict, policy: Policy, issue: Issue) -> Verdict:
    return (
        verdict
        if policy == "accept"
        else msgspec.structs.replace(verdict, issues=(*verdict.issues, _weigh(policy, issue)))
    )


def _weigh(policy: Policy, issue: Issue) -> Issue:
    return issue if policy == "reject" else replace(issue, severity="information")


def _names(profiles: Iterable[str]) -> str:
    return " and ".join(sorted(profile.rpartition("/")[2] for profile in profiles))


def _human(duration: timedelta) -> str:
    hours = duration.total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
