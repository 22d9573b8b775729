"""Every case of the corpus gets the HL7 validator's verdict; the run's summary counts them by dialect and profile."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cgm_proxy.check import among
from cgm_proxy.core.body import decode
from cgm_proxy.core.rules import RuleBook

GUIDE = Path(__file__).parents[3] / "shared" / "guide"
CORPUS = GUIDE / "corpus" / "public.ndjson"
DIALECTS = ("argo", "0.1.0", "1.0.0-ballot", "1.0.0")
CONTEXT_TYPES = ("Observation", "Patient", "DiagnosticReport", "Device")

#: Cases in which the validator itself is wrong, each with the reason. None is known.
VALIDATOR_IS_WRONG: dict[str, str] = {}
#: Where the run's summary shows it.
SECTION = "agreement with the HL7 validator"

pytestmark = pytest.mark.guide


def cases(dialect: str) -> Iterator[dict]:
    with CORPUS.open("rb") as lines:
        yield from (case for line in lines if (case := decode(line))["dialect"] == dialect)


def examples(dialect: str) -> list[dict]:
    folder = GUIDE / "ig" / dialect / "examples"
    return [decode(path.read_bytes()) for type_ in CONTEXT_TYPES for path in sorted(folder.glob(f"{type_}-*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_case_gets_the_validators_verdict(
    book: RuleBook, dialect: str, record_property: Callable[[str, object], None]
) -> None:
    known, total, agreed, wrong = examples(dialect), Counter(), Counter(), []
    for case in cases(dialect):
        context = known if case.get("context") == "examples" else case.get("context") or []
        issues = book.examine(case["resource"], [case["profile"]], among(context), dialect=dialect)
        verdict = "fail" if any(issue.refuses for issue in issues) else "pass"
        profile = case["profile"].rsplit("/", 1)[1]
        right = verdict == case.get("verdict_repaired", case["verdict"]) or case["id"] in VALIDATOR_IS_WRONG
        total[profile] += 1
        agreed[profile] += right
        if not right:
            wrong.append((case["id"], case["note"], verdict, issues))
    for profile, number in (*sorted(total.items()), ("all", total.total())):
        right = agreed[profile] if profile in agreed else agreed.total()
        record_property(SECTION, f"{dialect:14} {profile:48} cases {number:4} agreed {right:4}")
    assert not wrong


#: The guide's own examples that the validator refuses, with its reason.
REFUSED_EXAMPLES: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_guides_own_examples_pass(book: RuleBook, dialect: str) -> None:
    resolve = among(examples(dialect))
    refused = {}
    for path in sorted((GUIDE / "ig" / dialect / "examples").glob("*.json")):
        example = decode(path.read_bytes())
        profiles = book.implied(example, dialect)
        issues = [i.text for i in book.examine(example, profiles, resolve, dialect=dialect) if i.refuses]
        if issues:
            refused[dialect, path.stem] = issues[0]
    assert refused.keys() == {key for key in REFUSED_EXAMPLES if key[0] == dialect}, refused
