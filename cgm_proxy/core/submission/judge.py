"""Judges a submission: each entry on its own, then by the patient's orders, then by the entries that it references.

An entry is checked against the allow-list, its profiles' rules, and what its references lead to. What is wrong with an entry
is an issue of its verdict; `Judgement.issues` are faults of the whole submission. Stored resources and the time are arguments.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import msgspec

from cgm_proxy.core.issues import MOST_ISSUES, MOST_ISSUES_IN_ALL, Issue, at_most
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.r4.validator import do_not_pause
from cgm_proxy.core.submission import order_policies, references
from cgm_proxy.core.submission.model import Entry, Submission, preview, reference_paths
from cgm_proxy.core.submission.verdicts import Judgement, JudgingContext, Rules, Verdict

#: Referenced entries that stay parsed while a submission is judged. Usually all entries reference the same Device.
PARSED_TARGETS = 64

#: The fewest bytes of an element in JSON: a digit and a comma.
LEAST_BYTES = 2


def reference_resolver(submission: Submission, stored: Mapping[str, JsonObject] | None = None) -> ReferenceResolver:
    """Return a function that returns the resource a reference means: an entry's, or else a stored one."""

    @lru_cache(maxsize=PARSED_TARGETS)
    def resolve(reference: str) -> JsonObject | None:
        index = submission.internal_references.get(reference)
        if index is not None:
            return submission.entries[index].resource
        return stored.get(reference) if stored else None

    return resolve


def judge(submission: Submission, context: JudgingContext) -> Judgement:
    """Judge all entries of a submission at once."""
    incremental = IncrementalJudge(submission, context)
    incremental.judge(submission.entries)
    return incremental.judgement()


class IncrementalJudge:
    """Judges a submission part by part, so that accepted entries can be stored while others are still judged.

    An entry must not be judged before the entries that it references.
    """

    def __init__(self, submission: Submission, context: JudgingContext) -> None:
        self.submission = submission
        self._context = context
        self._resolve = reference_resolver(submission, context.stored_resources)
        self._schedules = order_policies.applicable_schedules(submission, context)
        self._verdicts: dict[int, Verdict] = {}
        self._present_profiles: set[str] = set()
        self._refused: set[int] = set()
        self._spare_issues = MOST_ISSUES_IN_ALL

    def judge(self, entries: Iterable[Entry], between: Callable[[], None] = do_not_pause) -> list[Verdict]:
        """Return the verdicts on the next part's entries; `between` is called again and again, also within one entry.

        If it raises, nothing of the part is judged.
        """
        context, faults, verdicts = self._context, self._reference_faults, list[Verdict]()
        for entry in entries:
            between()
            verdict = _judge_entry(entry, self.submission, context, self._resolve, faults, between)
            verdicts.append(self._bounded(verdict))
        if self._schedules:
            verdicts = list(order_policies.check_entries(verdicts, self._schedules, context))
        verdicts = self._refuse_by_references(verdicts)
        if self._schedules:
            for verdict in verdicts:
                self._present_profiles.update(verdict.profiles or self._profiles_of_refused(verdict.entry))
        return self._record(verdicts)

    def give_up(self, entries: Iterable[Entry], reason: Issue) -> list[Verdict]:
        """Return verdicts on entries that are not judged."""
        return self._record([Verdict(entry, (), (reason,)) for entry in entries])

    def _record(self, verdicts: list[Verdict]) -> list[Verdict]:
        if self._context.observe:
            verdicts = [msgspec.structs.replace(v, issues=_as_warnings(v.issues)) if v.issues else v for v in verdicts]
        self._verdicts.update((verdict.entry.index, verdict) for verdict in verdicts)
        return verdicts

    @cached_property
    def _reference_faults(self) -> Mapping[str, Issue]:
        return references.faults(self.submission, self._context)

    def _bounded(self, verdict: Verdict) -> Verdict:
        """Return a verdict with no more issues than the response has room for, but at least one."""
        if not verdict.issues:
            return verdict
        spare = max(min(self._spare_issues, MOST_ISSUES), 1)
        self._spare_issues = max(self._spare_issues - len(verdict.issues), 0)
        return msgspec.structs.replace(verdict, issues=at_most(spare, verdict.issues))

    @property
    def is_complete(self) -> bool:
        """Whether there is a verdict on every entry."""
        return len(self._verdicts) == len(self.submission.entries)

    @property
    def acceptance_is_final(self) -> bool:
        """Whether the entries accepted so far stay accepted, whatever the remaining ones are like.

        An atomic submission is final when all of it is judged; any other when no issue of the whole refuses it.
        """
        if self.submission.atomic:
            return self.is_complete and self.judgement().accepted
        return not any(issue.refuses for issue in self._submission_issues())

    def judgement(self) -> Judgement:
        """Return the verdicts on all entries and the issues of the submission as a whole, after the last part."""
        verdicts = tuple(self._verdicts[entry.index] for entry in self.submission.entries)
        wait = None if self._context.observe else order_policies.retry_after(self._schedules, self._context)
        return Judgement(self.submission, verdicts, self._submission_issues(), wait)

    def _submission_issues(self) -> tuple[Issue, ...]:
        found = order_policies.check_submission(self.submission, self._present_profiles, self._schedules, self._context)
        return _as_warnings(found) if self._context.observe else tuple(found)

    def _profiles_of_refused(self, entry: Entry) -> tuple[str, ...]:
        """Return the profiles of an entry that was refused before they were looked at."""
        return _profiles(entry.resource, self.submission.dialect.id, self._context.rules)

    def _refuse_by_references(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Refuse entries that reference a refused entry, directly or not, and entries whose references lead in a circle.

        Such an entry cannot be stored with the references that it has.
        """
        self._refused.update(verdict.entry.index for verdict in verdicts if not verdict.accepted)
        edges = {verdict.entry.index: self.submission.referenced_entries(verdict.entry) for verdict in verdicts}
        if not any(edges.values()):
            return list(verdicts)
        order = referenced_first({index: targets & edges.keys() for index, targets in edges.items()})
        circular = edges.keys() - set(order)
        refused_target: dict[int, int] = {}
        for index in order:
            if index not in self._refused and (refused := edges[index] & self._refused):
                refused_target[index] = min(refused)
                self._refused.add(index)
        self._refused |= circular
        checked = []
        for verdict in verdicts:
            entry = verdict.entry
            if entry.index in circular:
                text = "the entry's references lead in a circle; remove one of the references in it"
                issue = Issue("reference-circular", text, entry.type or None)
            elif entry.index in refused_target:
                target = refused_target[entry.index]
                text = f"the entry references entry {target}, which is refused; correct that entry and send both again"
                reference = next(r for r in entry.references if self.submission.internal_references.get(r) == target)
                issue = Issue("reference-refused", text, reference_paths(entry).get(reference, entry.type))
            else:
                checked.append(verdict)
                continue
            checked.append(msgspec.structs.replace(verdict, issues=(*verdict.issues, issue)))
        return checked


def _judge_entry(
    entry: Entry,
    submission: Submission,
    context: JudgingContext,
    resolve: ReferenceResolver,
    reference_faults: Mapping[str, Issue],
    between: Callable[[], None],
) -> Verdict:
    """Judge an entry on its own; a structural fault or the allow-list refuses it before its profiles are looked at."""
    refusals = entry.issues or tuple(_allow_list_issues(entry, submission, context))
    if refusals:
        return Verdict(entry, (), refusals)
    resource, dialect = entry.resource, submission.dialect.id
    profiles = _profiles(resource, dialect, context.rules)
    if not profiles:
        text = (
            f"the {entry.type} claims no profile of the CGM guide ({dialect}) and its code implies none; "
            "correct its code or leave the entry out"
        )
        return Verdict(entry, (), (Issue("profile-unknown", text, f"{entry.type}.code", code="business-rule"),))
    issues = context.rules.examine(resource, profiles, resolve, dialect=dialect, encoded=entry.encoded, between=between)
    return Verdict(entry, profiles, (*issues, *_reference_issues(entry, reference_faults)))


def _profiles(resource: JsonObject, dialect: str, rules: Rules) -> tuple[str, ...]:
    """Return the dialect's profiles that a resource claims, or else those that its code implies.

    A version after `|` and the profiles of other guides are ignored.
    """
    meta = resource.get("meta")
    claims = meta.get("profile") if isinstance(meta, dict) else None
    urls = [url.partition("|")[0] for url in claims if isinstance(url, str)] if isinstance(claims, list) else ()
    claimed = tuple([url for url in urls if (profile := rules.profile(url, dialect)) and profile.dialect == dialect])
    return claimed or rules.implied(resource, dialect)


def _allow_list_issues(entry: Entry, submission: Submission, context: JudgingContext) -> Iterator[Issue]:
    """Check that an entry creates a resource of an allowed type, about the submission's patient, and not nested too deep."""
    method, url = entry.request.get("method"), entry.request.get("url")
    if method != "POST":
        text = f"request.method is {preview(method)}; a CGM submission only creates resources, so it must be POST"
        yield Issue("allow-method", text, "request.method", code="not-supported")
    if entry.type not in context.allowed_types:
        allowed = ", ".join(context.allowed_types)
        text = f"a submission must not create a {entry.type[:40]} here, only: {allowed}; leave the entry out"
        yield Issue("allow-type", text, "resource", code="not-supported")
        return
    if url != entry.type:
        text = f'request.url is {preview(url)}; it must be the resource\'s type, "{entry.type}"'
        yield Issue("allow-url", text, "request.url", code="value")
    elif not isinstance(condition := entry.request.get("ifNoneExist", ""), str):
        text = f"request.ifNoneExist is {preview(condition)}; it must be a string"
        yield Issue("allow-condition", text, "request.ifNoneExist", code="value")
    if context.stored_resources and entry.full_url in context.stored_resources:
        text = f"fullUrl is {preview(entry.full_url)}, a stored resource; give the new entry a urn:uuid of its own"
        yield Issue("entry-full-url", text, "fullUrl", code="value")
    yield from _subject_issues(entry, submission, context)
    yield from _size_issues(entry, context)


def _subject_issues(entry: Entry, submission: Submission, context: JudgingContext) -> Iterator[Issue]:
    name = "patient" if entry.type == "Device" else "subject"
    path = f"{entry.type}.{name}"
    if entry.subject is not None and entry.subject != submission.patient:
        text = (
            f"{name} is another patient than {submission.patient}, whom most entries are about; "
            "send a separate submission for each patient"
        )
        yield Issue("subject-other", text, path, code="forbidden")
    elif submission.patient is None or (entry.subject is None and (name == "subject" or name in entry.resource)):
        text = (
            f"{name} identifies no patient of this server; it must have a literal reference, "
            f'{name}.reference = "Patient/[id]"'
        )
        yield Issue("subject-unknown", text, path, code="not-found")
    elif not context.patient_known:
        text = f"this server has no {submission.patient}; reference a patient that it has"
        yield Issue("subject-unknown", text, path, code="not-found")


def _size_issues(entry: Entry, context: JudgingContext) -> Iterator[Issue]:
    """Check that a resource is neither nested too deep nor has too many elements.

    It is parsed only if it has more brackets than levels are allowed, or enough bytes for too many elements.
    """
    encoded, elements = entry.encoded, 0
    nested = encoded.count(b"{") + encoded.count(b"[") > context.max_depth
    if not nested and len(encoded) <= LEAST_BYTES * context.max_elements:
        return
    level: list[Any] = [entry.resource]
    for _ in range(context.max_depth):
        elements += sum(map(_size, level))
        if elements > context.max_elements:
            text = f"the resource has more than {context.max_elements:,} elements; divide it among several entries"
            yield Issue("too-many-elements", text, "resource", code="too-costly")
            return
        members = chain.from_iterable(value.values() if isinstance(value, dict) else value for value in level)
        level = [member for member in members if isinstance(member, dict | list)]
    if level:
        text = f"the resource is nested more than {context.max_depth} levels deep; flatten it"
        yield Issue("too-deep", text, "resource", code="structure")


def _size(value: JsonObject | list[Any]) -> int:
    """Return the number of values in an object or array; the tags and attributes of a narrative count as well."""
    div = value.get("div") if isinstance(value, dict) else None
    return len(value) + (div.count("<") + div.count("=") if isinstance(div, str) else 0)


def _reference_issues(entry: Entry, faults: Mapping[str, Issue]) -> Iterator[Issue]:
    """Yield the faults of the entry's references, each with the path of its first occurrence."""
    faulty = [reference for reference in entry.references if reference in faults] if faults else ()
    if faulty:
        paths = reference_paths(entry)
        for reference in faulty[: MOST_ISSUES + 1]:
            yield replace(faults[reference], expression=paths.get(reference, entry.type))


def referenced_first(edges: Mapping[int, set[int]]) -> list[int]:
    """Return entries in such an order that each comes after those that it references.

    `edges` maps each entry to those that it references. Entries on a circle, or from which references lead to one, are left
    out.
    """
    users: dict[int, list[int]] = {}
    waiting_for = {source: len(targets) for source, targets in edges.items()}
    for source, targets in edges.items():
        for target in targets:
            users.setdefault(target, []).append(source)
    order = [source for source, count in waiting_for.items() if not count]
    for index in order:
        for user in users.get(index, ()):
            waiting_for[user] -= 1
            if not waiting_for[user]:
                order.append(user)
    return order


def _as_warnings(issues: Iterable[Issue]) -> tuple[Issue, ...]:
    """Return issues with warnings in place of refusals."""
    return tuple(replace(issue, severity="warning") if issue.refuses else issue for issue in issues)
