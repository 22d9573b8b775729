"""What refuses an entry, and what refuses a submission."""

import pytest
from support.submissions import entry, reading, submitted

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.submission.verdicts import Judgement, Verdict

ERROR, FATAL = Issue("e", "text"), Issue("f", "text", severity="fatal")
WARNING, INFORMATION = Issue("w", "text", severity="warning"), Issue("i", "text", severity="information")


@pytest.mark.parametrize(
    ("issues", "accepted"),
    [
        ((), True),
        ((INFORMATION, WARNING), True),
        ((ERROR,), False),
        ((FATAL,), False),
        ((WARNING, ERROR), False),
    ],
)
def test_an_entry_is_accepted_unless_an_issue_refuses_it(issues: tuple[Issue, ...], accepted: bool) -> None:
    [only_entry] = submitted(entry(reading())).entries
    assert Verdict(only_entry, (), issues).accepted == accepted


@pytest.mark.parametrize(
    ("kind", "endpoint", "entry_issues", "submission_issues", "accepted"),
    [
        ("batch", "base", (), (), True),
        ("batch", "base", (ERROR,), (), True),
        ("batch", "base", (), (WARNING,), True),
        ("batch", "base", (), (ERROR,), False),
        ("transaction", "operation", (ERROR,), (), True),
        ("transaction", "operation", (), (ERROR,), False),
        ("transaction", "base", (WARNING,), (), True),
        ("transaction", "base", (ERROR,), (), False),
        ("transaction", "base", (), (ERROR,), False),
    ],
)
def test_a_submission_is_accepted_unless_an_issue_refuses_it_or_an_entry_of_an_atomic_one(
    kind: str,
    endpoint: str,
    entry_issues: tuple[Issue, ...],
    submission_issues: tuple[Issue, ...],
    accepted: bool,
) -> None:
    submission = submitted(entry(reading()), entry(reading(1)), kind=kind, endpoint=endpoint)
    first, second = submission.entries
    verdicts = (Verdict(first, (), entry_issues), Verdict(second, ()))
    assert Judgement(submission, verdicts, submission_issues).accepted == accepted
