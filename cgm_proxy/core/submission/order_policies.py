"""Judges a submission by the patient's orders; the policies decide what each finding leads to.

- `check_entries`: does an order ask for the entry (`unsolicited`), and is it recent enough (`outside_lookback`)?
- `check_submission`: is there an order (`no_order`), is the submission complete (`incomplete`), is it due (`too_often`)?
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cgm_proxy.core.issues import Issue, Severity
from cgm_proxy.core.r4.dates import interval
from cgm_proxy.core.submission.model import Entry, Submission
from cgm_proxy.core.submission.orders import Schedule
from cgm_proxy.core.submission.verdicts import JudgingContext, Policy, Verdict

#: The severity of a finding's issue, by policy; with `accept` there is no issue.
SEVERITIES: dict[Policy, Severity | None] = {"accept": None, "warn": "information", "reject": "error"}


class _Times(msgspec.Struct, rename="camel", gc=False):
    """The elements of a resource that are read here; the decoder skips the others."""

    effective_date_time: Any = None
    effective_period: Any = None


_times = msgspec.json.Decoder(_Times)


def applicable_schedules(submission: Submission, context: JudgingContext) -> list[Schedule]:
    """Return the schedules of the patient's orders in the submission's dialect that ask for any profile."""
    orders = [order for order in context.orders if submission.dialect.id in order.dialects]
    return [schedule for order in orders for schedule in order.schedules if schedule.profiles]


def check_entries(verdicts: Iterable[Verdict], schedules: list[Schedule], context: JudgingContext) -> Iterator[Verdict]:
    """Yield each verdict, with an issue if no schedule asks for its entry, or not for data of its time."""
    asking_by_profiles: dict[tuple[str, ...], list[Schedule]] = {}
    for verdict in verdicts:
        if not verdict.profiles:  # refused before its profiles were looked at
            yield verdict
            continue
        if verdict.profiles not in asking_by_profiles:
            asking_by_profiles[verdict.profiles] = [each for each in schedules if _asks_for(each, verdict, context)]
        asking = asking_by_profiles[verdict.profiles]
        timely = [schedule for schedule in asking if _is_timely(schedule, verdict.entry, context.now)]
        if timely:
            yield verdict
            continue
        if all(schedule.window for schedule in asking):  # also if none asks
            solicited = _names({profile for schedule in schedules for profile in schedule.profiles}, ", ")
            policy, rule = context.policies.unsolicited, "order-unsolicited"
            text = (
                f"no active order of the patient asks for {_names(verdict.profiles)} at this time; "
                f"send only what the orders ask for: {solicited}"
            )
        else:
            policy, rule = context.policies.outside_lookback, "order-lookback"
            text = "the entry is older than the order's lookback period; send only entries within that period"
        issues = _weighed(policy, Issue(rule, text, verdict.entry.type, code="business-rule"))
        yield msgspec.structs.replace(verdict, issues=(*verdict.issues, *issues)) if issues else verdict


def _asks_for(schedule: Schedule, verdict: Verdict, context: JudgingContext) -> bool:
    """Whether a schedule asks for an entry's profiles, or for a profile whose resources consist of such entries."""
    if verdict.entry.type == "Device":  # what measured the data belongs to any of it
        return True
    parts = (context.rules.made_of(profile) for profile in schedule.profiles)
    return not schedule.profiles.union(*parts).isdisjoint(verdict.profiles)


def _is_timely(schedule: Schedule, entry: Entry, now: datetime) -> bool:
    """Whether an entry is in a schedule's window or lookback period; an entry whose time cannot be read counts as timely."""
    if schedule.window is None and schedule.lookback is None:
        return True
    times = _times.decode(entry.encoded)
    span = interval(times.effective_date_time)
    if span is None:
        period = times.effective_period if isinstance(times.effective_period, dict) else {}
        start, end = interval(period.get("start")), interval(period.get("end"))
        if start is None or end is None:
            return True
        span = start[0], end[1]
    if schedule.window:
        return span[0] < schedule.window[1] and span[1] > schedule.window[0]
    return schedule.lookback is None or span[1] >= now - schedule.lookback


def check_submission(
    submission: Submission, present: Collection[str], schedules: list[Schedule], context: JudgingContext
) -> Iterator[Issue]:
    """Yield the issues of the submission as a whole: no order, no schedule satisfied completely, or too early.

    `present` are the profiles of its entries. A refused entry counts as present: its own issues say what to correct.
    """
    policies = context.policies
    if not schedules:
        text = (
            f"the patient has no active order for CGM data in version {submission.dialect.id} of the guide; "
            "submit once the data receiver has placed one"
        )
        yield from _weighed(policies.no_order, Issue("order-none", text, code="business-rule"))
        return
    missing = [schedule.profiles.difference(present) for schedule in schedules]
    if all(missing):
        additions = " or ".join(sorted({_names(profiles) for profiles in missing}))
        text = f"the submission satisfies no schedule of the patient's orders completely; add {additions}"
        yield from _weighed(policies.incomplete, Issue("order-incomplete", text, "Bundle.entry", code="business-rule"))
    if wait := _time_until_due(schedules, context):
        hours = wait.total_seconds() / 3600
        duration = f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
        text = f"the order's submission period has not passed since the last submission; submit again in {duration}"
        yield from _weighed(policies.too_often, Issue("order-too-often", text, code="throttled"))


def _time_until_due(schedules: list[Schedule], context: JudgingContext) -> timedelta | None:
    """Return how long the shortest period still lasts; None if it has passed, or if some schedule has no period."""
    periods = [schedule.period for schedule in schedules if schedule.period]
    if not periods or len(periods) < len(schedules) or context.last_submission is None:
        return None
    wait = context.last_submission + min(periods) - context.now
    return wait if wait > timedelta() else None


def retry_after(schedules: list[Schedule], context: JudgingContext) -> timedelta | None:
    """Return how long to wait before the next submission, if the policy rejects one that comes too early."""
    return _time_until_due(schedules, context) if context.policies.too_often == "reject" else None


def _weighed(policy: Policy, issue: Issue) -> tuple[Issue, ...]:
    """Return an issue with the severity that a policy gives it; nothing if the policy accepts the finding."""
    severity = SEVERITIES[policy]
    return (replace(issue, severity=severity),) if severity else ()


def _names(profiles: Iterable[str], separator: str = " and ") -> str:
    """Return the last segments of profiles' canonical URLs, sorted."""
    return separator.join(sorted({profile.rpartition("/")[2] for profile in profiles}))
