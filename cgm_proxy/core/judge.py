"""Judge a submission: each entry by the allow-list, its profiles' rules and its references, all of it by the orders.

Pure: what is stored upstream and what time it is are arguments. A verdict is a value; only a fault of the whole submission
(an order that nothing satisfies) is in `Judgement.issues`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol

from cgm_proxy.core.bundle import Entry, Submission, names
from cgm_proxy.core.errors import Issue, Json
from cgm_proxy.core.identity import Resolve
from cgm_proxy.core.instants import interval
from cgm_proxy.core.orders import Schedule, StandingOrder

Policy = Literal["accept", "warn", "reject"]


class Profile(Protocol):
    """What the judge asks of a profile."""

    @property
    def dialect(self) -> str:
        """The id of the guide's version that it belongs to."""


class Rules(Protocol):
    """What the judge asks of the rules; `core.rules.RuleBook` answers it."""

    def profile(self, url: str, dialect: str) -> Profile | None:
        """Give a profile of the dialect by its canonical."""

    def implied(self, resource: Json, dialect: str) -> tuple[str, ...]:
        """List the profiles that its type, code and unit imply."""

    def made_of(self, profile: str) -> frozenset[str]:
        """List the profiles of what a profile's resource consists of."""

    def examine(
        self, resource: Json, profiles: Sequence[str], resolve: Resolve, *, dialect: str, encoded: bytes | None = None
    ) -> tuple[Issue, ...]:
        """List what is wrong with a resource by base R4 and by the profiles."""


class Policies(Protocol):
    """What each finding about orders does; `settings.Policies` is one."""

    @property
    def no_order(self) -> Policy:
        """The patient has no active order."""

    @property
    def incomplete(self) -> Policy:
        """No schedule is satisfied whole."""

    @property
    def unsolicited(self) -> Policy:
        """No order asks for the entry's profile."""

    @property
    def outside_lookback(self) -> Policy:
        """The entry is older than the order reaches back."""

    @property
    def too_often(self) -> Policy:
        """The order's period since the last submission is not over."""


@dataclass(frozen=True, slots=True)
class Context:
    """All that a verdict depends on beside the submission: orders, what is stored, policies, rules and the time."""

    rules: Rules
    policies: Policies
    allow: tuple[str, ...]
    now: datetime
    depth: int
    patient_known: bool = True
    """Whether the upstream has the submission's patient."""
    orders: tuple[StandingOrder, ...] = ()
    stored: Mapping[str, Json] | None = None
    """Stored resources that entries reference, by reference."""
    last_submission: datetime | None = None
    observe: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one entry. It is accepted unless an issue refuses it."""

    entry: Entry
    profiles: tuple[str, ...]
    issues: tuple[Issue, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the entry may be stored."""
        return not any(issue.refuses for issue in self.issues)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts in the entries' order, and the issues of the submission as a whole."""

    submission: Submission
    verdicts: tuple[Verdict, ...]
    issues: tuple[Issue, ...] = ()
    retry_after: timedelta | None = None
    """How long to wait, where it came too often and the policy rejects that."""

    @property
    def accepted(self) -> bool:
        """Whether the submission goes on, with those of its entries that are accepted."""
        whole = not any(issue.refuses for issue in self.issues)
        return whole and not (self.submission.atomic and any(not verdict.accepted for verdict in self.verdicts))


def resolver(entries: Sequence[Entry], stored: Mapping[str, Json] | None = None) -> Resolve:
    """Make the function that finds what a reference names: an entry, or else what is stored."""
    found = dict(stored or {})
    found.update((name, entries[index].resource) for name, index in names(entries).items())
    return found.get


def judge(submission: Submission, context: Context) -> Judgement:
    """Judge every entry by itself, then by what it references, then the submission by the patient's orders."""
    resolve = resolver(submission.entries, context.stored)
    verdicts = [_judge_entry(entry, submission, context, resolve) for entry in submission.entries]
    schedules = _schedules(submission, context)
    if schedules:
        verdicts = [_by_orders(verdict, schedules, context) for verdict in verdicts]
    verdicts = list(_by_references(verdicts))
    issues = tuple(_whole(submission, verdicts, schedules, context))
    judgement = Judgement(submission, tuple(verdicts), issues, _retry_after(schedules, context))
    return _observed(judgement) if context.observe else judgement


def _judge_entry(entry: Entry, submission: Submission, context: Context, resolve: Resolve) -> Verdict:
    refusals = entry.issues or tuple(_not_allowed(entry, submission, context))
    if refusals:
        return Verdict(entry, (), refusals)
    dialect = submission.dialect.id
    profiles = _claimed(entry.resource, context.rules, dialect) or context.rules.implied(entry.resource, dialect)
    if not profiles:
        text = (
            f"the {entry.type} claims no profile of the CGM guide ({dialect}) and has no code of one; "
            "correct its code or leave the entry out"
        )
        return Verdict(entry, (), (Issue("profile-unknown", text, f"{entry.type}.code", code="business-rule"),))
    issues = context.rules.examine(entry.resource, profiles, resolve, dialect=dialect, encoded=entry.encoded)
    return Verdict(entry, profiles, (*issues, *_foreign(entry, submission, resolve)))


def _claimed(resource: Json, rules: Rules, dialect: str) -> tuple[str, ...]:
    """List the dialect's profiles that a resource claims; a version after `|` and other guides' profiles do not matter here."""
    meta = resource.get("meta")
    claims = meta.get("profile") if isinstance(meta, dict) else None
    urls = [url.partition("|")[0] for url in claims if isinstance(url, str)] if isinstance(claims, list) else ()
    return tuple(url for url in urls if (found := rules.profile(url, dialect)) and found.dialect == dialect)


def _not_allowed(entry: Entry, submission: Submission, context: Context) -> Iterator[Issue]:
    """Check an entry against the allow-list: POST, an allowed type, the submission's patient, bounded nesting."""
    method, url = entry.request.get("method"), entry.request.get("url")
    if method != "POST":
        text = f"request.method is {_shown(method)}; a CGM submission creates only: POST"
        yield Issue("allow-method", text, "request.method", code="not-supported")
    if entry.type not in context.allow:
        text = f"{entry.type[:40]} is not among what a submission may create here: {', '.join(context.allow)}; leave it out"
        yield Issue("allow-type", text, "resource", code="not-supported")
    elif url != entry.type:
        text = f'request.url is {_shown(url)}; it wants the resource\'s type, "{entry.type}"'
        yield Issue("allow-url", text, "request.url", code="value")
    elif not isinstance(entry.request.get("ifNoneExist", ""), str):
        yield Issue("allow-condition", "request.ifNoneExist wants a string", "request.ifNoneExist", code="value")
    yield from _subject(entry, submission, context)
    if _depth_over(entry, context.depth):
        yield Issue(
            "too-deep", f"the resource is nested deeper than {context.depth}; flatten it", "resource", code="structure"
        )


def _subject(entry: Entry, submission: Submission, context: Context) -> Iterator[Issue]:
    name = "patient" if entry.type == "Device" else "subject"
    where = f"{entry.type}.{name}"
    if entry.subject is not None and entry.subject != submission.patient:
        text = f"{name} is another patient than {submission.patient}, whom this submission is about; submit each patient apart"
        yield Issue("subject-other", text, where, code="forbidden")
    elif submission.patient is None or (entry.subject is None and (name == "subject" or name in entry.resource)):
        text = (
            f'{name} names no patient of this server; it wants a literal reference, {name}.reference = "Patient/[id]"'
        )
        yield Issue("subject-unknown", text, where, code="not-found")
    elif not context.patient_known:
        text = f"this server has no {submission.patient}; refer to a patient that it has"
        yield Issue("subject-unknown", text, where, code="not-found")


def _depth_over(entry: Entry, limit: int) -> bool:
    """Tell whether a resource is nested too deep; only what has as many brackets can be."""
    encoded = entry.encoded
    if encoded.count(b"{") + encoded.count(b"[") <= limit:
        return False
    level: list[object] = [entry.resource]
    for _ in range(limit):
        level = [child for value in level for child in _children(value) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _foreign(entry: Entry, submission: Submission, resolve: Resolve) -> Iterator[Issue]:
    """Refuse a reference to what is about another patient, in the submission or stored."""
    for reference in entry.references:
        target = resolve(reference) or {}
        subject = target.get("patient" if target.get("resourceType") == "Device" else "subject")
        about = subject.get("reference") if isinstance(subject, dict) else None
        if isinstance(about, str) and about.startswith("Patient/") and about != submission.patient:
            text = f"{_shown(reference)} is about another patient than {submission.patient}; refer to this patient's data only"
            yield Issue("reference-other-patient", text, entry.type, code="forbidden")


def _by_references(verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    """Reject what references a rejected entry, or itself by a circle: it could not be stored truthfully."""
    named = names(verdict.entry for verdict in verdicts)
    edges = {v.entry.index: {named[r] for r in v.entry.references if r in named} for v in verdicts}
    order = referenced_first(edges)
    circular = edges.keys() - set(order)
    lost = {verdict.entry.index for verdict in verdicts if not verdict.accepted}
    reasons: dict[int, int] = {}
    for index in order:
        if index not in lost and (refused := edges[index] & lost):
            reasons[index] = min(refused)
            lost.add(index)
    for verdict in verdicts:
        found = tuple(_lost(verdict.entry, circular, reasons))
        yield replace(verdict, issues=verdict.issues + found) if found else verdict


def referenced_first(edges: Mapping[int, set[int]]) -> list[int]:
    """Order entries so that each comes after those that it references; those on circles, or leading to one, are left out."""
    users: dict[int, list[int]] = {}
    waits = {source: len(targets) for source, targets in edges.items()}
    for source, targets in edges.items():
        for target in targets:
            users.setdefault(target, []).append(source)
    order = [source for source, count in waits.items() if not count]
    for index in order:
        for user in users.get(index, ()):
            waits[user] -= 1
            if not waits[user]:
                order.append(user)
    return order


def _lost(entry: Entry, circular: Collection[int], reasons: Mapping[int, int]) -> Iterator[Issue]:
    if entry.index in circular:
        text = "its references lead in a circle; break the circle"
        yield Issue("reference-circular", text, entry.type or None, code="invalid")
    elif entry.index in reasons:
        text = f"it references entry {reasons[entry.index]}, which is refused; correct that one and send both again"
        yield Issue("reference-refused", text, entry.type or None, code="invalid")


def _schedules(submission: Submission, context: Context) -> list[Schedule]:
    """Give what the patient's orders ask for in the submission's dialect."""
    orders = [order for order in context.orders if submission.dialect.id in order.dialects]
    return [schedule for order in orders for schedule in order.schedules if schedule.profiles]


def _by_orders(verdict: Verdict, schedules: list[Schedule], context: Context) -> Verdict:
    if not verdict.profiles:
        return verdict
    span = _effective(verdict.entry)
    asking = [s for s in schedules if _asks(s, verdict, context)]
    timely = [schedule for schedule in asking if _timely(schedule, span, context.now)]
    if not asking or (not timely and all(schedule.window for schedule in asking)):
        wanted = sorted({name.rpartition("/")[2] for schedule in schedules for name in schedule.profiles})
        text = f"no active order of the patient asks for {_names(verdict.profiles)} at this time; asked for: {', '.join(wanted)}"
        return _with(
            verdict,
            context.policies.unsolicited,
            Issue("order-unsolicited", text, verdict.entry.type, code="business-rule"),
        )
    if not timely:
        text = "the entry is older than the order's lookback period reaches; send what lies within it"
        return _with(
            verdict,
            context.policies.outside_lookback,
            Issue("order-lookback", text, verdict.entry.type, code="business-rule"),
        )
    return verdict


def _asks(schedule: Schedule, verdict: Verdict, context: Context) -> bool:
    if verdict.entry.type == "Device":
        return True
    asked = set(schedule.profiles)
    for profile in schedule.profiles:
        asked |= context.rules.made_of(profile)
    return not asked.isdisjoint(verdict.profiles)


def _effective(entry: Entry) -> tuple[datetime, datetime] | None:
    resource = entry.resource
    if span := interval(resource.get("effectiveDateTime")):
        return span
    period = resource.get("effectivePeriod")
    bounds = period if isinstance(period, dict) else {}
    start, end = interval(bounds.get("start")), interval(bounds.get("end"))
    return (start[0], end[1]) if start and end else None


def _timely(schedule: Schedule, span: tuple[datetime, datetime] | None, now: datetime) -> bool:
    if span is None:
        return True
    if schedule.window:
        return span[0] < schedule.window[1] and span[1] > schedule.window[0]
    return schedule.lookback is None or span[1] >= now - schedule.lookback


def _whole(
    submission: Submission, verdicts: Sequence[Verdict], schedules: list[Schedule], context: Context
) -> Iterator[Issue]:
    policies = context.policies
    if not schedules:
        if policies.no_order != "accept":
            text = f"the patient has no active order for CGM data of the guide's version {submission.dialect.id}"
            yield _weigh(policies.no_order, Issue("order-none", text, code="business-rule"))
        return
    present = {profile for verdict in verdicts for profile in verdict.profiles}
    lacking = [schedule.profiles - present for schedule in schedules]
    if all(lacking) and policies.incomplete != "accept":
        text = "no schedule of the patient's orders is satisfied whole; add " + " or ".join(
            sorted({_names(names) for names in lacking})
        )
        yield _weigh(policies.incomplete, Issue("order-incomplete", text, "Bundle.entry", code="business-rule"))
    if (wait := _too_early(schedules, context)) and policies.too_often != "accept":
        text = f"the order's period since the last submission ends in {_human(wait)}"
        yield _weigh(policies.too_often, Issue("order-too-often", text, code="throttled"))


def _too_early(schedules: list[Schedule], context: Context) -> timedelta | None:
    periods = [schedule.period for schedule in schedules if schedule.period]
    if not periods or len(periods) < len(schedules) or context.last_submission is None:
        return None
    wait = context.last_submission + min(periods) - context.now
    return wait if wait > timedelta() else None


def _retry_after(schedules: list[Schedule], context: Context) -> timedelta | None:
    return _too_early(schedules, context) if context.policies.too_often == "reject" else None


def _observed(judgement: Judgement) -> Judgement:
    """Turn every refusal into a warning: what would be refused is counted, and stored all the same."""
    verdicts = tuple(replace(verdict, issues=_warnings(verdict.issues)) for verdict in judgement.verdicts)
    return replace(judgement, verdicts=verdicts, issues=_warnings(judgement.issues), retry_after=None)


def _warnings(issues: tuple[Issue, ...]) -> tuple[Issue, ...]:
    return tuple(replace(issue, severity="warning") if issue.refuses else issue for issue in issues)


def _with(verdict: Verdict, policy: Policy, issue: Issue) -> Verdict:
    return verdict if policy == "accept" else replace(verdict, issues=(*verdict.issues, _weigh(policy, issue)))


def _weigh(policy: Policy, issue: Issue) -> Issue:
    return issue if policy == "reject" else replace(issue, severity="information")


def _names(profiles: Iterable[str]) -> str:
    return " and ".join(sorted(profile.rpartition("/")[2] for profile in profiles))


def _human(duration: timedelta) -> str:
    hours = duration.total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


def _shown(value: object) -> str:
    return f'"{value[:60]}"' if isinstance(value, str) else type(value).__name__
