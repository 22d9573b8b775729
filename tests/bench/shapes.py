"""The cost of the verdict cache where it cannot help: readings that all differ in shape, every second one faulty."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from bench.figures import Runs

from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.core.submission import reader
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.core.submission.judge import IncrementalJudge
from cgm_proxy.core.submission.model import Entry, Submission, submission_from_bundle
from cgm_proxy.core.submission.verdicts import JudgingContext
from cgm_proxy.rulekit.loading import rule_book, shipped_rules
from cgm_proxy.sandbox.simulation.submissions import submission
from cgm_proxy.settings.loading import Settings

#: Readings that are judged with the cache and then without it, in turns, so that other load affects both alike.
TURN = 96


def different(readings: int) -> Submission:
    """Return a submission of readings that all differ in a note, every second one with a wrong unit."""
    bundle = submission("argo", "Patient/1", readings=readings, summary=False, pdf=False, device=False)
    for number, entry in enumerate(bundle["entry"]):
        entry["resource"]["note"] = [{"text": f"note {number}"}]
        if number % 2:
            entry["resource"]["valueQuantity"]["unit"] = "mg/dL"
    limits = Settings().limits
    xml = FhirXml(rule_book(shipped_rules()).model(None), limits.depth)
    read = reader.read_document(encode(bundle), xml, str, limits.entries)
    return submission_from_bundle(read, DIALECTS_BY_ID["argo"], "base", str, limits)


def measure(runs: Runs, readings: int) -> None:
    """Judge them with and without the cache; add the CPU time of each turn (us per reading)."""
    submitted = different(readings)
    caching, plain = (rule_book(shipped_rules()) for _ in range(2))
    plain.verdict_cache = None
    for book in (caching, plain):  # the first use compiles expressions
        _judge(book, submitted, submitted.entries[-2:])
    for start in range(0, readings - 2, TURN):
        part = submitted.entries[start : start + TURN]
        ways = [("us_different", caching), ("us_plain", plain)]
        for name, book in ways if start // TURN % 2 else reversed(ways):
            runs.add(name, _judge(book, submitted, part))


def _judge(book: RuleBook, submitted: Submission, part: Sequence[Entry]) -> float:
    settings = Settings()
    limits = settings.limits
    context = JudgingContext(book, settings.policies, settings.allow, datetime.now(UTC), limits.depth, limits.elements)
    judging = IncrementalJudge(submitted, context)
    before = time.thread_time()
    judging.judge(part)
    return (time.thread_time() - before) / len(part) * 1e6
