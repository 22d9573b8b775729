"""What each status of the upstream means, and what the proxy does about it."""

from typing import get_args

import pytest

from cgm_proxy.core.rest.reactions import REACTIONS, Cause, cause_of

#: Status, whether the body explains it, whether there is a Retry-After, and the cause.
CAUSES = [
    (302, False, False, "refused"),
    (400, True, False, "refused"),
    (401, False, False, "refused"),
    (404, True, False, "refused"),
    (408, False, False, "busy"),
    (409, True, False, "conflict"),
    (409, False, False, "conflict"),
    (412, True, False, "unclear"),
    (413, True, False, "refused"),
    (422, True, False, "refused"),
    (425, False, False, "busy"),
    (429, False, False, "busy"),
    (429, True, True, "busy"),
    (500, True, False, "failed"),
    (500, False, False, "lost"),  # it may come from a gateway
    (501, True, False, "refused"),
    (502, True, False, "lost"),
    (503, True, True, "busy"),
    (503, True, False, "lost"),
    (504, False, True, "lost"),
    (505, False, False, "refused"),
    (520, False, False, "lost"),
]


@pytest.mark.parametrize(("status", "explained", "retry_after", "cause"), CAUSES)
def test_each_status_has_a_cause(status: int, explained: bool, retry_after: bool, cause: Cause) -> None:
    assert cause_of(status, explained=explained, retry_after=retry_after) == cause


def test_each_cause_has_a_reaction() -> None:
    assert set(REACTIONS) == set(get_args(Cause))


def test_only_failures_of_the_server_slow_the_proxy_down() -> None:
    assert {cause for cause, reaction in REACTIONS.items() if reaction.slows} == {"busy", "failed", "lost"}


def test_only_what_was_certainly_not_carried_out_is_sent_again_without_a_condition() -> None:
    assert {cause for cause, reaction in REACTIONS.items() if reaction.may_arrive_late} == {"lost"}
