"""Check files as `cgm-proxy check` gets them: Bundles, single resources, or NDJSON of resources and of asked lines.

A Bundle or resource gets the verdicts that an online submission would get; what only the upstream knows (orders, patients,
stored resources) is taken as not being in the way. Asked by dialect, it is judged by the rules of its profiles alone.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import msgspec

from cgm_proxy.commands.check_lines import Checked, check_line
from cgm_proxy.core.codec import bodies, json_body
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.reference_scope import resolver_among
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission import detection, model
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.core.submission.judge import judge
from cgm_proxy.core.submission.model import Submission
from cgm_proxy.core.submission.reply import with_entry_path
from cgm_proxy.core.submission.verdicts import JudgingContext
from cgm_proxy.settings.loading import Settings


def check_file(name: str, data: bytes, book: RuleBook, settings: Settings) -> Iterator[Checked]:
    """Judge a file's content, told apart by what it is; `name` is the id of what can't be read at all."""
    xml = FhirXml(book.model(None), settings.limits.depth)
    lines = [line for line in data.splitlines() if line.strip()]
    if len(lines) > 1 and _is_object(lines[0]):
        for number, line in enumerate(lines, 1):
            yield from _check_line(f"{name}:{number}", line, book, settings, xml)
    else:
        yield from _check_line(name, data, book, settings, xml)


def check_resources(files: Mapping[str, bytes], book: RuleBook, dialect: str, settings: Settings) -> Iterator[Checked]:
    """Judge each file's resource by what it claims and by the profile that a dialect implies; they may refer to one another."""
    xml = FhirXml(book.model(None), settings.limits.depth)
    read: dict[str, JsonObject | RequestRefused] = {}
    for name, data in files.items():
        try:
            read[name] = bodies.parse(data, xml)
        except RequestRefused as refused:
            read[name] = refused
    resolve = resolver_among(one for one in read.values() if isinstance(one, dict))
    for name, one in read.items():
        if isinstance(one, RequestRefused):
            yield Checked(name, one.issues)
        else:
            yield Checked(name, book.examine(one, book.implied(one, dialect), resolve, dialect=dialect))


def _check_line(name: str, data: bytes, book: RuleBook, settings: Settings, xml: FhirXml) -> Iterator[Checked]:
    try:
        document = bodies.parse(data, xml)
        if "resource" in document and "resourceType" not in document:
            yield check_line(data, book)
        else:
            yield from _check_submission(name, _submission(document, settings), book, settings)
    except RequestRefused as refused:
        yield Checked(name, refused.issues)


def _submission(document: JsonObject, settings: Settings) -> Submission:
    tagged = detection.tagged_dialect(document)
    dialect = tagged or detection.content_dialect(document) or DIALECTS_BY_ID["1.0.0"]
    if document.get("resourceType") in ("Bundle", "Parameters"):
        opened = model.operation_bundle(document)
        return model.submission_from_bundle(
            opened, dialect, "base" if tagged else "operation", _as_it_is, settings.limits
        )
    return model.submission_from_resource(document, dialect, _as_it_is, None)


def _check_submission(name: str, submission: Submission, book: RuleBook, settings: Settings) -> Iterator[Checked]:
    context = JudgingContext(book, settings.policies, settings.allow, datetime.now(UTC), settings.limits.depth)
    judgement = judge(submission, context)
    for issue in judgement.issues:
        yield Checked(name, (issue,))
    for verdict in judgement.verdicts:
        alone = submission.interaction == "create"
        issues = verdict.issues if alone else tuple(with_entry_path(issue, verdict) for issue in verdict.issues)
        yield Checked(name if alone else verdict.entry.full_url or f"{name}#{verdict.entry.index}", issues)


def _is_object(line: bytes) -> bool:
    try:
        json_body.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True


def _as_it_is(reference: str) -> str:
    return reference
