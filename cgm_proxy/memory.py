"""What is remembered to save work: patients' orders and where entries are stored. Forgetting costs a look-up, never truth."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from weakref import WeakValueDictionary

from cachetools import LRUCache, TTLCache

from cgm_proxy.core.detect import segments
from cgm_proxy.core.errors import Json
from cgm_proxy.core.orders import StandingOrder
from cgm_proxy.core.plan import Stored
from cgm_proxy.metrics import ORDER_LOOKUPS
from cgm_proxy.settings import Cache

#: A patient's active orders; None where the upstream has no such patient.
Orders = tuple[StandingOrder, ...] | None


@dataclass(frozen=True, slots=True)
class Turn:
    """A patient's turn, which saves lost races; whoever must rest on it asks whether it is still held."""

    held: bool = True


class Memory:
    """Remember orders, also that there are none, with one look-up in flight a patient; and stored entries by identity."""

    #: Types whose stored entries are remembered.
    _FORGETTABLE = frozenset({"Observation", "DiagnosticReport", "Device"})

    def __init__(self, cache: Cache) -> None:
        self._orders: TTLCache[tuple[str, str], tuple[Orders]] = TTLCache(cache.orders, cache.orders_seconds)
        self._asking: dict[tuple[str, str], asyncio.Task[Orders]] = {}
        self._known: TTLCache[str, Stored] = TTLCache(cache.known, cache.known_seconds)
        self._submitted: LRUCache[str, datetime] = LRUCache(cache.orders)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._writes = 0

    async def orders(self, patient: str, authorization: str, ask: Callable[[], Awaitable[Orders]]) -> Orders:
        """Give the patient's orders as this authorization may see them, asked for once by all who want them now.

        A failed look-up is raised to all who wait for it and not remembered.
        """
        key = (patient, hashlib.sha256(authorization.encode()).hexdigest())
        if found := self._orders.get(key):  # asked once: what is there now may have expired a moment later
            ORDER_LOOKUPS.labels("hit").inc()
            return found[0]
        if task := self._asking.get(key):
            ORDER_LOOKUPS.labels("shared").inc()
            return await asyncio.shield(task)
        ORDER_LOOKUPS.labels("miss").inc()
        task = self._asking[key] = asyncio.ensure_future(self._ask(key, ask))
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[str, str], ask: Callable[[], Awaitable[Orders]]) -> Orders:
        mine = asyncio.current_task()
        try:
            found = await ask()
            if self._asking.get(key) is mine:  # no write to an order came by meanwhile
                self._orders[key] = (found,)
        finally:
            if self._asking.get(key) is mine:
                self._asking.pop(key, None)
        return found

    async def notice_write(self, method: str, path: Collection[str]) -> None:
        """Forget what a write that passed through may have changed; `path` are the segments of its path.

        A create changes nothing that is known of other resources; an operation may change anything.
        """
        if "_search" in path:
            return
        operation = any(part.startswith("$") for part in path)
        if operation or "ServiceRequest" in path or "Patient" in path:
            await self.forget_orders()
        cascading = method == "DELETE"  # servers can be made to delete what references the deleted
        if operation or cascading or (method != "POST" and not self._FORGETTABLE.isdisjoint(path)):
            await self.forget_known()

    async def notice_bundle(self, bundle: Json) -> None:
        """Forget what an untagged Bundle that passed through may have changed."""
        entries = bundle.get("entry")
        for entry in entries if isinstance(entries, list) else ():
            fields = entry if isinstance(entry, dict) else {}
            request, resource = fields.get("request"), fields.get("resource")
            asked = request if isinstance(request, dict) else {}
            if asked.get("method") != "GET":
                kind = resource.get("resourceType") if isinstance(resource, dict) else None  # wins over the url on HAPI
                await self.notice_write(str(asked.get("method")), [*segments(str(asked.get("url"))), str(kind)])

    async def note_submission(self, patient: str | None, now: datetime) -> None:
        """Note that something new of the patient was stored now."""
        if patient:
            self._submitted[patient] = now

    async def last_submission(self, patient: str | None) -> datetime | None:
        """Tell when something new of the patient was last stored by this process; None where it does not know."""
        return self._submitted.get(patient) if patient else None

    async def forget_orders(self) -> None:
        """Forget all orders, because one was written; look-ups under way are not remembered."""
        self._orders.clear()
        self._asking.clear()

    async def known(self, identities: Iterable[str]) -> dict[str, Stored]:
        """Give where those of the identities that are remembered are stored."""
        return {identity: found for identity in identities if (found := self._known.get(identity))}

    async def remember(self, stored: Mapping[str, Stored], epoch: str) -> None:
        """Remember where entries are stored, as the upstream has confirmed it.

        `epoch` is what it was before the upstream was asked: nothing is remembered if a write came by since then, which
        may have deleted what was just found.
        """
        if epoch == await self.epoch():
            self._known.update(stored)

    async def forget_known(self) -> None:
        """Forget where entries are stored, because some were changed or deleted."""
        self._writes += 1
        self._known.clear()

    async def epoch(self) -> str:
        """Give what changes whenever what is known of stored entries has to be forgotten."""
        return str(self._writes)

    @asynccontextmanager
    async def turn(self, patient: str) -> AsyncIterator[Turn]:
        """Wait for the patient's turn: one submission of a patient at a time saves lost races; correctness does not need it."""
        async with self._turns.setdefault(patient, asyncio.Lock()):
            yield Turn()
