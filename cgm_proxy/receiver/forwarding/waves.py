"""Sends a plan upstream wave by wave: a group whole if the server can store it so, else entry by entry."""

import asyncio
from collections import deque
from collections.abc import Sequence

from cgm_proxy.core.rest.strategy import split_groups
from cgm_proxy.core.submission.outcomes import Refused, Stored, refused
from cgm_proxy.core.submission.plan import Group, Plan
from cgm_proxy.receiver.forwarding.chunks import Chunks, Delivery

NOT_WHOLE = refused(
    501,
    "atomic-not-supported",
    "the server can't store this many entries all or nothing; send a batch, which is stored entry by entry",
    code="not-supported",
)

CIRCULAR = refused(
    422,
    "reference-circular",
    "the entry references a duplicate of an entry that references it, so neither can be stored first; leave the duplicate out",
    code="business-rule",
)


async def forward(plan: Plan, delivery: Delivery) -> None:
    """Deliver a plan's entries; their outcomes are in the ledger afterwards."""
    ledger, upstream = delivery.ledger, delivery.sender.upstream
    ledger.record(plan.settled)
    if not plan.waves:
        return
    strategy = await upstream.strategy.get()
    chunks = Chunks(plan, strategy, delivery)
    for wave in plan.waves:
        await _send_wave([group for group in wave if strategy.fits(group)], plan, chunks, delivery)
        remaining = ledger.unsettled(wave)
        if plan.atomic:
            ledger.record({index: NOT_WHOLE for group in remaining for index in group})
            continue
        steps, circular = split_groups(remaining, plan)
        ledger.record(dict.fromkeys(circular, CIRCULAR))
        for step in steps:
            await _send_wave(step, plan, chunks, delivery)


async def _send_wave(groups: Sequence[Group], plan: Plan, chunks: Chunks, delivery: Delivery) -> None:
    """Send groups that don't reference one another, a few chunks at a time; the rate limiter says how large a chunk is."""
    limiter, waiting = delivery.sender.upstream.limiter, deque[Group]()
    for group in groups:
        lost = _lost_reference(group, plan, delivery)
        if lost is None:
            waiting.append(group)
        else:
            text = f"the entry references entry {lost}, which was not stored; send both again"
            outcome = refused(424, "reference-not-stored", text, code="transient")
            delivery.ledger.record(dict.fromkeys(group, outcome))

    async def send_chunks() -> None:
        while waiting:
            chunk = [waiting.popleft()]
            size = len(chunk[0])
            while waiting and size + len(waiting[0]) <= limiter.chunk:
                size += len(waiting[0])
                chunk.append(waiting.popleft())
            await chunks.deliver(chunk)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(limiter.most_at_once, len(waiting))):
            tasks.create_task(send_chunks())


def _lost_reference(group: Group, plan: Plan, delivery: Delivery) -> int | None:
    """Return the index of an entry that the group references and that was not stored; None if there is none."""
    for index in group:
        for reference in plan.creates[index].entry.references:
            target = plan.links.get(reference)
            if target is None:
                continue
            outcome = delivery.ledger.get(target)
            if isinstance(outcome, Refused) or (target in plan.earlier and not isinstance(outcome, Stored)):
                return target
    return None
