"""Every case of the corpus gets the HL7 validator's verdict; the run's summary counts them by dialect and profile."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from support.places import GUIDE

from cgm_proxy.commands.checker import Checker
from cgm_proxy.core.codec.json_body import decode
from cgm_proxy.core.r4.reference_scope import resolver_among
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.settings.loading import Settings

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
        issues = book.examine(case["resource"], [case["profile"]], resolver_among(context), dialect=dialect)
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


#: The guide's own examples that the validator refuses, with its reason. None is known: the Bundles of 0.1.0 and 1.0.0-ballot,
#: which match two slices of the profiles as they were published, pass the repaired ones that the rules are made from.
REFUSED_EXAMPLES: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_guides_own_examples_pass(
    book: RuleBook, dialect: str, record_property: Callable[[str, object], None]
) -> None:
    """As a user checks them: `cgm-proxy check --dialect D examples/*.json`."""
    files = {path.stem: path.read_bytes() for path in sorted((GUIDE / "ig" / dialect / "examples").glob("*.json"))}
    judged = {book.implied(decode(data), dialect) for data in files.values()}
    results = Checker(book, Settings()).check_resources(files, dialect)
    refused = {result.id: result.issues for result in results if not result.passed}
    record_property(
        "the guide's own examples", f"{dialect:14} examples {len(files):3} passed {len(files) - len(refused):3}"
    )
    assert refused.keys() == {name for of, name in REFUSED_EXAMPLES if of == dialect}, refused
    defined = {p.url for p in book.profiles.values() if p.dialect == dialect and p.when}
    assert len({url for profiles in judged for url in profiles}) >= len(defined) - 1
