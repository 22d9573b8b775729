"""Judge a submission: each entry by the allow-list, its profiles' rules and its references, all of it by the orders.

Pure: what is stored upstream and what time it is are arguments. A verdict is a value; only a fault of the whole submission
(an order that nothing satisfies) is in `Judgement.issues`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission import order_policies
from cgm_proxy.core.submission.identity import ReferenceResolver
from cgm_proxy.core.submission.model import Entry, Submission, preview, reference_paths
from cgm_proxy.core.submission.verdicts import Judgement, JudgingContext, Rules, Verdict

#: Entries that others refer to which are kept parsed while a submission is judged: mostly all refer to one Device.
PARSED_TARGETS = 64


def reference_resolver(submission: Submission, stored: Mapping[str, JsonObject] | None = None) -> ReferenceResolver:
    """Make the function that finds what a reference names: an entry, or else what is stored."""
    links, elsewhere = submission.internal_references, stored or {}

    @lru_cache(maxsize=PARSED_TARGETS)
    def resolve(reference: str) -> JsonObject | None:
        index = links.get(reference)
        return elsewhere.get(reference) if index is None else submission.entries[index].resource

    return resolve


def judge(submission: Submission, context: JudgingContext) -> Judgement:
    """Judge a submission in one piece."""
    judging = IncrementalJudge(submission, context)
    judging.judge(submission.entries)
    return judging.judgement()


class IncrementalJudge:
    """Judge a submission part by part, each after what it references: entries by themselves, then all by the orders."""

    def __init__(self, submission: Submission, context: JudgingContext) -> None:
        self.submission = submission
        self._context = context
        self._resolve = reference_resolver(submission, context.stored_resources)
        self._schedules = order_policies.schedules(submission, context)
        self._verdicts: dict[int, Verdict] = {}
        self._present: set[str] = set()
        self._lost: set[int] = set()

    def judge(self, entries: Iterable[Entry]) -> list[Verdict]:
        """Judge every entry by itself, by what the orders ask for, then by what it references."""
        verdicts = [_judge_entry(entry, self.submission, self._context, self._resolve) for entry in entries]
        if self._schedules:
            verdicts = list(order_policies.solicited(verdicts, self._schedules, self._context))
        verdicts = list(self._by_references(verdicts))
        if self._schedules:
            self._present.update(profile for v in verdicts for profile in v.profiles or self._meant(v))
        if self._context.observe:
            verdicts = [msgspec.structs.replace(v, issues=_warnings(v.issues)) if v.issues else v for v in verdicts]
        self._verdicts.update((verdict.entry.index, verdict) for verdict in verdicts)
        return verdicts

    @property
    def acceptance_is_final(self) -> bool:
        """Whether what was accepted so far stays so: nothing that may still come can refuse the submission whole."""
        if self.submission.atomic:
            return len(self._verdicts) == len(self.submission.entries) and self.judgement().accepted
        return not any(issue.refuses for issue in self._issues())

    def judgement(self) -> Judgement:
        """Give the verdicts in the entries' order, and those on all of it."""
        verdicts = tuple(self._verdicts[entry.index] for entry in self.submission.entries)
        wait = None if self._context.observe else order_policies.retry_after(self._schedules, self._context)
        return Judgement(self.submission, verdicts, self._issues(), wait)

    def _issues(self) -> tuple[Issue, ...]:
        issues = tuple(order_policies.whole(self.submission, self._present, self._schedules, self._context))
        return _warnings(issues) if self._context.observe else issues

    def _meant(self, verdict: Verdict) -> tuple[str, ...]:
        """Give the profiles of an entry that was refused before they mattered."""
        return _profiles(verdict.entry.resource, self.submission.dialect.id, self._context.rules)

    def _by_references(self, verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
        """Reject what references a rejected entry, or itself by a circle: it could not be stored truthfully."""
        self._lost.update(verdict.entry.index for verdict in verdicts if not verdict.accepted)
        edges = {verdict.entry.index: self.submission.referenced_entries(verdict.entry) for verdict in verdicts}
        if not any(edges.values()):
            yield from verdicts
            return
        order = referenced_first({index: targets & edges.keys() for index, targets in edges.items()})
        circular = edges.keys() - set(order)
        reasons: dict[int, int] = {}
        for index in order:
            if index not in self._lost and (refused := edges[index] & self._lost):
                reasons[index] = min(refused)
                self._lost.add(index)
        self._lost |= circular
        for verdict in verdicts:
            found = tuple(_lost(verdict.entry, circular, reasons, self.submission.internal_references))
            yield msgspec.structs.replace(verdict, issues=verdict.issues + found) if found else verdict


def _judge_entry(entry: Entry, submission: Submission, context: JudgingContext, resolve: ReferenceResolver) -> Verdict:
    refusals = entry.issues or tuple(_not_allowed(entry, submission, context))
    if refusals:
        return Verdict(entry, (), refusals)
    resource, dialect = entry.resource, submission.dialect.id
    profiles = _profiles(resource, dialect, context.rules)
    if not profiles:
        text = (
            f"the {entry.type} claims no profile of the CGM guide ({dialect}) and has no code of one; "
            "correct its code or leave the entry out"
        )
        return Verdict(entry, (), (Issue("profile-unknown", text, f"{entry.type}.code", code="business-rule"),))
    issues = context.rules.examine(resource, profiles, resolve, dialect=dialect, encoded=entry.encoded)
    return Verdict(entry, profiles, (*issues, *_misdirected(entry, submission, resolve)))


def _profiles(resource: JsonObject, dialect: str, rules: Rules) -> tuple[str, ...]:
    """List the dialect's profiles that a resource claims, or else those that its code implies."""
    return _claimed(resource, rules, dialect) or rules.implied(resource, dialect)


def _claimed(resource: JsonObject, rules: Rules, dialect: str) -> tuple[str, ...]:
    """List the dialect's profiles that a resource claims; a version after `|` and other guides' profiles do not matter here."""
    meta = resource.get("meta")
    claims = meta.get("profile") if isinstance(meta, dict) else None
    urls = [url.partition("|")[0] for url in claims if isinstance(url, str)] if isinstance(claims, list) else ()
    return tuple([url for url in urls if (found := rules.profile(url, dialect)) and found.dialect == dialect])


def _not_allowed(entry: Entry, submission: Submission, context: JudgingContext) -> Iterator[Issue]:
    """Check an entry against the allow-list: POST, an allowed type, the submission's patient, bounded nesting."""
    method, url = entry.request.get("method"), entry.request.get("url")
    if method != "POST":
        text = f"request.method is {preview(method)}; a CGM submission creates only: POST"
        yield Issue("allow-method", text, "request.method", code="not-supported")
    if entry.type not in context.allowed_types:
        text = f"{entry.type[:40]} is not among what a submission may create here: {', '.join(context.allowed_types)}; leave it out"
        yield Issue("allow-type", text, "resource", code="not-supported")
        return
    if url != entry.type:
        text = f'request.url is {preview(url)}; it wants the resource\'s type, "{entry.type}"'
        yield Issue("allow-url", text, "request.url", code="value")
    elif not isinstance(entry.request.get("ifNoneExist", ""), str):
        yield Issue("allow-condition", "request.ifNoneExist wants a string", "request.ifNoneExist", code="value")
    yield from _subject(entry, submission, context)
    if _depth_over(entry, context.max_depth):
        yield Issue(
            "too-deep",
            f"the resource is nested deeper than {context.max_depth}; flatten it",
            "resource",
            code="structure",
        )


def _subject(entry: Entry, submission: Submission, context: JudgingContext) -> Iterator[Issue]:
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


def _misdirected(entry: Entry, submission: Submission, resolve: ReferenceResolver) -> Iterator[Issue]:
    """Refuse a reference to what is about another patient, and one to an entry that is not there."""
    faults = {r: fault for r in entry.references if (fault := _misdirection(r, submission, resolve))}
    paths = reference_paths(entry) if faults else {}
    for reference, (rule, text, code) in faults.items():
        yield Issue(rule, text, paths.get(reference, entry.type), code=code)


def _misdirection(reference: str, submission: Submission, resolve: ReferenceResolver) -> tuple[str, str, str] | None:
    """Tell by rule, text and FHIR issue type what is wrong with where a reference leads."""
    target = resolve(reference)
    if target is None:
        text = f"no entry has the fullUrl {preview(reference)}; add it, or refer to what is stored as Type/id"
        return ("reference-unknown", text, "not-found") if reference.startswith("urn:") else None
    subject = target.get("patient" if target.get("resourceType") == "Device" else "subject")
    about = subject.get("reference") if isinstance(subject, dict) else None
    if isinstance(about, str) and about.startswith("Patient/") and about != submission.patient:
        text = f"{preview(reference)} is about another patient than {submission.patient}; refer to this patient's data only"
        return "reference-other-patient", text, "forbidden"
    return None


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


def _lost(
    entry: Entry, circular: Collection[int], reasons: Mapping[int, int], links: Mapping[str, int]
) -> Iterator[Issue]:
    if entry.index in circular:
        text = "its references lead in a circle; break the circle"
        yield Issue("reference-circular", text, entry.type or None, code="invalid")
    elif entry.index in reasons:
        refused = reasons[entry.index]
        text = f"it references entry {refused}, which is refused; correct that one and send both again"
        reference = next(each for each in entry.references if links.get(each) == refused)
        path = reference_paths(entry).get(reference, entry.type)
        yield Issue("reference-refused", text, path, code="invalid")


def _warnings(issues: tuple[Issue, ...]) -> tuple[Issue, ...]:
    return tuple(replace(issue, severity="warning") if issue.refuses else issue for issue in issues)
