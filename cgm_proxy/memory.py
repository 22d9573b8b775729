"""What is remembered to save work: patients' orders and where entries are stored. Forgetting costs a look-up, never truth."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from cachetools import TTLCache

from cgm_proxy.core.errors import Json
from cgm_proxy.core.orders import StandingOrder
from cgm_proxy.core.plan import Stored
from cgm_proxy.metrics import ORDER_LOOKUPS
from cgm_proxy.settings import Cache

#: A patient's active orders; None where the upstream has no such patient.
Orders = tuple[StandingOrder, ...] | None


class Memory:
    """Remember orders, also that there are none, with one look-up in flight a patient; and stored entries by identity."""

    #: Types whose stored entries are remembered.
    _FORGETTABLE = frozenset({"Observation", "DiagnosticReport", "Device"})

    def __init__(self, cache: Cache) -> None:
        self._orders: TTLCache[tuple[str, str], Orders] = TTLCache(cache.orders, cache.orders_seconds)
        self._asking: dict[tuple[str, str], asyncio.Task[Orders]] = {}
        self._known: TTLCache[str, Stored] = TTLCache(cache.known, cache.known_seconds)

    async def orders(self, patient: str, authorization: str, ask: Callable[[], Awaitable[Orders]]) -> Orders:
        """Give the patient's orders as this authorization may see them, asked for once by all who want them now.

        A failed look-up is raised to all who wait for it and not remembered.
        """
        key = (patient, hashlib.sha256(authorization.encode()).hexdigest())
        if key in self._orders:
            ORDER_LOOKUPS.labels("hit").inc()
            return self._orders[key]
        if task := self._asking.get(key):
            ORDER_LOOKUPS.labels("shared").inc()
            return await asyncio.shield(task)
        ORDER_LOOKUPS.labels("miss").inc()
        task = self._asking[key] = asyncio.ensure_future(self._ask(key, ask))
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[str, str], ask: Callable[[], Awaitable[Orders]]) -> Orders:
        mine = self._asking.get(key)
        try:
            found = await ask()
            if self._asking.get(key) is mine:  # no write to an order came by meanwhile
                self._orders[key] = found
        finally:
            if self._asking.get(key) is mine:
                self._asking.pop(key, None)
        return found

    def notice_write(self, method: str, path: Collection[str]) -> None:
        """Forget what a write that passed through may have changed; `path` are the segments of its path.

        A create changes nothing that is known of other resources; an operation may change anything.
        """
        if "_search" in path:
            return
        if "ServiceRequest" in path or "Patient" in path:
            self.forget_orders()
        operation = any(part.startswith("$") for part in path)
        if operation or (method != "POST" and not self._FORGETTABLE.isdisjoint(path)):
            self.forget_known()

    def notice_bundle(self, bundle: Json) -> None:
        """Forget what an untagged Bundle that passed through may have changed."""
        entries = bundle.get("entry")
        for entry in entries if isinstance(entries, list) else ():
            request = entry.get("request") if isinstance(entry, dict) else None
            url, method = (request.get("url"), request.get("method")) if isinstance(request, dict) else (None, None)
            if isinstance(url, str) and method != "GET":
                self.notice_write(str(method), url.partition("?")[0].split("/"))

    def forget_orders(self) -> None:
        """Forget all orders, because one was written; look-ups under way are not remembered."""
        self._orders.clear()
        self._asking.clear()

    def known(self, identities: Iterable[str]) -> dict[str, Stored]:
        """Give where those of the identities that are remembered are stored."""
        known = self._known
        return {identity: known[identity] for identity in identities if identity in known}

    def remember(self, stored: Mapping[str, Stored]) -> None:
        """Remember where entries are stored, as the upstream has confirmed it."""
        self._known.update(stored)

    def forget_known(self) -> None:
        """Forget where entries are stored, because some were changed or deleted."""
        self._known.clear()
