"""Judges documents without an upstream server, for `cgm-proxy check`.

A Bundle or a single resource gets the verdicts that it would get as a submission to the proxy, as far as the upstream does not
decide: the patient is taken to exist, and no order or stored resource is known. A case is a JSON object that names the profile
to judge by:

    {"id": …, "profile": CANONICAL, "resource": {…}, "context": [{…}], "dialect": …}

`context` (optional) has the resources that references may mean. `dialect` (optional) says which version of the guide a canonical
means if several versions share it; `CANONICAL|VERSION` says the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from cgm_proxy.core.codec import bodies
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.issues import Issue, RequestRefused
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.reference_scope import resolver_among
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission import detection, model
from cgm_proxy.core.submission.dialects import DEFAULT_DIALECT
from cgm_proxy.core.submission.judge import judge
from cgm_proxy.core.submission.reply import with_entry_path
from cgm_proxy.core.submission.verdicts import JudgingContext
from cgm_proxy.settings.loading import Settings


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The verdict on a resource or submission; `id` is its fullUrl, the id of a case, or the name of the file."""

    id: Any
    issues: tuple[Issue, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing refuses it; warnings do not."""
        return not any(issue.refuses for issue in self.issues)

    def as_json(self) -> str:
        """Return the verdict as a line of NDJSON, without warnings."""
        errors = [{"rule": i.rule, "path": i.expression, "message": i.text} for i in self.issues if i.refuses]
        return encode({"id": self.id, "verdict": "pass" if self.passed else "fail", "errors": errors}).decode()

    def as_text(self) -> str:
        """Return the verdict as a line of text, and a further line for each issue."""
        lines = [f"{'pass' if self.passed else 'FAIL'} {self.id}"]
        lines += (f"  {i.severity} {i.expression or ''} {i.text} [{i.rule}]" for i in self.issues)
        return "\n".join(lines)


class Checker:
    """Judges documents by rules, and by the limits and policies of the settings."""

    def __init__(self, rules: RuleBook, settings: Settings) -> None:
        self._rules = rules
        self._settings = settings
        self._xml = FhirXml(rules.model(None), settings.limits.depth)

    def check_file(self, name: str, data: bytes) -> Iterator[CheckResult]:
        """Judge a document in JSON or XML, or each line of NDJSON."""
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) > 1 and _is_object(lines[0]):
            for number, line in enumerate(lines, 1):
                yield from self._check_document(f"{name}:{number}", line)
        else:
            yield from self._check_document(name, data)

    def check_resources(self, files: Mapping[str, bytes], dialect: str) -> Iterator[CheckResult]:
        """Judge the resource in each file by the profiles that it claims and those that the dialect implies.

        The resources may refer to one another.
        """
        resources: dict[str, JsonObject | RequestRefused] = {}
        for name, data in files.items():
            try:
                resources[name] = bodies.parse(data, self._xml)
            except RequestRefused as refusal:
                resources[name] = refusal
        resolve = resolver_among(resource for resource in resources.values() if isinstance(resource, dict))
        for name, resource in resources.items():
            if isinstance(resource, RequestRefused):
                yield CheckResult(name, resource.issues)
            else:
                implied = self._rules.implied(resource, dialect)
                yield CheckResult(name, self._rules.examine(resource, implied, resolve, dialect=dialect))

    def _check_document(self, name: str, data: bytes) -> Iterator[CheckResult]:
        try:
            document = bodies.parse(data, self._xml)
            if "resource" in document and "resourceType" not in document:
                yield self._check_case(document)
            else:
                yield from self._check_submission(name, document)
        except RequestRefused as refusal:
            yield CheckResult(name, refusal.issues)

    def _check_case(self, case: JsonObject) -> CheckResult:
        """Judge the resource of a case by the profile that the case names."""
        resource, profile, dialect = case.get("resource"), case.get("profile"), case.get("dialect")
        dialect = dialect if isinstance(dialect, str) else None
        if not isinstance(resource, dict):
            issue = Issue("r4-json", "the resource is no JSON object; R4 requires { … }")
            return CheckResult(case.get("id"), (issue,))
        if not isinstance(profile, str) or self._rules.profile(profile, dialect) is None:
            text = f"the profile {str(profile)[:100]} is not known; see `cgm-proxy rules list`"
            return CheckResult(case.get("id"), (Issue("unknown-profile", text),))
        resolve = resolver_among(objects(case.get("context")))
        return CheckResult(case.get("id"), self._rules.examine(resource, [profile], resolve, dialect=dialect))

    def _check_submission(self, name: str, document: JsonObject) -> Iterator[CheckResult]:
        settings = self._settings
        tagged = detection.tagged_dialect(document)
        dialect = tagged or detection.content_dialect(document) or DEFAULT_DIALECT
        if document.get("resourceType") in ("Bundle", "Parameters"):
            bundle, endpoint = model.operation_bundle(document), "base" if tagged else "operation"
            submission = model.submission_from_bundle(bundle, dialect, endpoint, _unchanged, settings.limits)
        else:
            submission = model.submission_from_resource(document, dialect, _unchanged, None)

        context = JudgingContext(
            self._rules,
            settings.policies,
            settings.allow,
            datetime.now(UTC),
            settings.limits.depth,
            settings.limits.elements,
        )
        judgement = judge(submission, context)
        for issue in judgement.issues:
            yield CheckResult(name, (issue,))
        for verdict in judgement.verdicts:
            if submission.interaction == "create":
                yield CheckResult(name, verdict.issues)
            else:
                id_ = verdict.entry.full_url or f"{name}#{verdict.entry.index}"
                yield CheckResult(id_, tuple(with_entry_path(issue, verdict) for issue in verdict.issues))


def _is_object(line: bytes) -> bool:
    try:
        decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True


def _unchanged(reference: str) -> str:
    """Return a reference as it is; without a server, none is a reference to this server."""
    return reference
