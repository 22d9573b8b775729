"""Small resources, submissions and rules for the tests of the core; each is easy to change in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.issues import Issue
from cgm_proxy.core.r4.reference_scope import ReferenceResolver
from cgm_proxy.core.r4.validator import do_not_pause
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.core.submission.judge import judge, reference_resolver
from cgm_proxy.core.submission.model import Submission, submission_from_bundle
from cgm_proxy.core.submission.plan import AcceptedEntry, identify
from cgm_proxy.core.submission.verdicts import Judgement, JudgingContext
from cgm_proxy.settings.loading import LimitSettings, PolicySettings

PATIENT = "Patient/1"
NOW = datetime(2025, 6, 15, 12, tzinfo=UTC)
LIMITS = LimitSettings(entries=100_000)
BASE = "http://hl7.org/fhir/uv/cgm/StructureDefinition/"
READING = f"{BASE}cgm-sensor-reading-mass-per-volume"
SUMMARY = f"{BASE}cgm-summary"
GMI = f"{BASE}cgm-summary-gmi"
PDF = f"{BASE}cgm-summary-pdf"
DEVICE = f"{BASE}cgm-device"

localize = BaseUrls.of("https://public.example/fhir", "http://up:8081/fhir").localize

Json = dict[str, Any]


def urn(number: int) -> str:
    return f"urn:uuid:00000000-0000-4000-8000-{number:012}"


def observation(code: str, **more: Any) -> Json:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": PATIENT},
        **more,
    }


def reading(minute: int = 0, value: Any = 100, **more: Any) -> Json:
    members = {
        "effectiveDateTime": f"2025-06-{1 + minute // 1440:02}T{minute // 60 % 24:02}:{minute % 60:02}:00Z",
        "valueQuantity": {
            "value": value,
            "unit": "mg/dl",
            "system": "http://unitsofmeasure.org",
            "code": "mg/dL",
        },
    }
    return observation("99504-3", **{**members, **more})


def nested(depth: int) -> dict[str, Any]:
    """Return a reading that is nested `depth` levels deep, the reading itself included."""
    inner: dict[str, Any] = {"x": 1}
    for _ in range(depth - 2):
        inner = {"x": inner}
    return reading(x=inner, y=[{}] * 100)


def summary(*members: str, **more: Any) -> Json:
    return observation("107931-8", hasMember=[{"reference": member} for member in members], **more)


def gmi(**more: Any) -> Json:
    return observation("97506-0", **more)


def report(*results: str, **more: Any) -> Json:
    members = {"subject": {"reference": PATIENT}, "result": [{"reference": result} for result in results]}
    return {"resourceType": "DiagnosticReport", **members, **more}


def device(**more: Any) -> Json:
    return {"resourceType": "Device", "patient": {"reference": PATIENT}, **more}


def entry(resource: Any, full_url: Any = None, **request: Any) -> Json:
    resource_type = resource.get("resourceType") if isinstance(resource, dict) else None
    item = {"resource": resource, "request": {"method": "POST", "url": resource_type, **request}}
    return item | ({} if full_url is None else {"fullUrl": full_url})


def bundle(*entries: Any, kind: str = "transaction") -> Json:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def submitted(
    *entries: Any, dialect: str = "1.0.0", kind: str = "transaction", endpoint: str = "operation"
) -> Submission:
    """Return the submission of a Bundle of type `kind` that was posted to `endpoint`."""
    return submission_from_bundle(bundle(*entries, kind=kind), DIALECTS_BY_ID[dialect], endpoint, localize, LIMITS)


class KnownProfile(NamedTuple):
    """A profile of `FakeRules`."""

    dialect: str


BY_CODE = {"99504-3": READING, "107931-8": SUMMARY, "97506-0": GMI}
BY_TYPE = {"DiagnosticReport": PDF, "Device": DEVICE}


@dataclass
class FakeRules:
    """Rules whose faults are given by resource id, and which imply profiles by code and type."""

    faults: Mapping[str, Issue] = field(default_factory=dict)
    always: str | None = None
    """A profile that every resource implies."""
    examined: list[tuple[Json, Sequence[str]]] = field(default_factory=list)

    def profile(self, url: str, dialect: str) -> KnownProfile | None:
        return KnownProfile(dialect) if url in {READING, SUMMARY, GMI, PDF, DEVICE} else None

    def implied(self, resource: Json, dialect: str) -> tuple[str, ...]:  # noqa: ARG002 -- the protocol's
        if self.always:
            return (self.always,)
        if "resourceType" not in resource:
            return ()
        found = BY_TYPE.get(resource["resourceType"]) or BY_CODE.get(resource["code"]["coding"][0]["code"])
        return (found,) if found else ()

    def made_of(self, profile: str) -> frozenset[str]:
        return frozenset({GMI}) if profile == SUMMARY else frozenset()

    def examine(
        self,
        resource: Json,
        profiles: Sequence[str],
        resolve: ReferenceResolver,
        *,
        dialect: str,
        encoded: bytes | None = None,
        between: Callable[[], None] = do_not_pause,
    ) -> tuple[Issue, ...]:
        del resolve, dialect, encoded
        between()
        self.examined.append((resource, profiles))
        fault = self.faults.get(str(resource.get("id")))
        return (fault,) if fault else ()


def context(**more: Any) -> JudgingContext:
    fields = {
        "rules": FakeRules(),
        "policies": PolicySettings(),
        "allowed_types": ("Observation", "DiagnosticReport", "Device"),
        "now": NOW,
        "max_depth": 64,
        "max_elements": 20_000,
    }
    return JudgingContext(**{**fields, **more})


def judged(*entries: Any, kind: str = "transaction", endpoint: str = "operation", **more: Any) -> Judgement:
    return judge(submitted(*entries, kind=kind, endpoint=endpoint), context(**more))


def rules_found(judgement: Judgement) -> list[list[str]]:
    """Return the rule ids of each verdict's issues."""
    return [[issue.rule for issue in verdict.issues] for verdict in judgement.verdicts]


def identified_entries(submission: Submission, *, observe: bool = False) -> tuple[AcceptedEntry, ...]:
    judgement = judge(submission, context(rules=FakeRules(always="http://x/any"), observe=observe))
    return identify(judgement.verdicts, submission, reference_resolver(submission), localize)
