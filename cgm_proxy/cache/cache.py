"""What is remembered to save work: patients' orders and where entries are stored. Forgetting costs a look-up, never truth.

It is kept in notes of this process, or in notes that replicas share; see `notes.py`, `shared.py`. Values are read as
strictly as an answer from anybody else.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from weakref import WeakValueDictionary

import msgspec

from cgm_proxy.cache.backends import CacheBackend, LocalBackend, Namespace, PatientLock
from cgm_proxy.cache.valkey_backend import ValkeyBackend
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest.responses import ETAG, LOCATION
from cgm_proxy.core.submission.detection import path_segments
from cgm_proxy.core.submission.model import ParsedEntries
from cgm_proxy.core.submission.orders import LONGEST_PERIOD, StandingOrder
from cgm_proxy.core.submission.outcomes import Stored
from cgm_proxy.observability.metrics import ORDER_LOOKUPS
from cgm_proxy.settings.loading import Settings

#: A patient's active orders; None where the upstream has no such patient.
Orders = tuple[StandingOrder, ...] | None

#: How long a submission waits for another one of its patient at another replica (seconds); then they race.
LOCK_TIMEOUT = 10.0

#: How long one waits for another replica that asks for the same orders (seconds), before it asks as well.
ORDERS_LOCK_TIMEOUT = 3.0

#: Types whose stored entries are remembered.
_REMEMBERED = frozenset({"Observation", "DiagnosticReport", "Device"})

_KNOWN: frozenset[Namespace] = frozenset({"known"})


class Cache:
    """Remember orders, also that there are none, with one look-up in flight a patient; and stored entries by identity."""

    def __init__(self, settings: Settings) -> None:
        shared = settings.cache.shared
        self._backend: CacheBackend = ValkeyBackend(settings, shared) if shared else LocalBackend(settings.cache)
        self._asking: dict[tuple[str, str], asyncio.Task[Orders]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.source = self._backend.source

    async def start(self) -> None:
        """Get ready; what is shared may be away."""
        await self._backend.start()

    async def stop(self) -> None:
        """Close connections."""
        await self._backend.stop()

    @property
    def available(self) -> bool:
        """Whether anything can be remembered now; without, all is asked upstream."""
        return self._backend.available

    async def orders(self, patient: str, authorization: str, ask: Callable[[], Awaitable[Orders]]) -> Orders:
        """Give the patient's orders as this authorization may see them, asked for once by all who want them now.

        A failed look-up is raised to all who wait for it and not remembered.
        """
        name = _hashed(patient, authorization)
        epoch, found = await self._noted_orders(name)
        if found:
            ORDER_LOOKUPS.labels("hit").inc()
            return found[0]
        if not epoch:  # a write is under way, or nothing can be noted
            ORDER_LOOKUPS.labels("miss").inc()
            return await ask()
        key = (epoch, name)
        if key in self._asking:
            ORDER_LOOKUPS.labels("shared").inc()
        else:
            self._asking[key] = asyncio.ensure_future(self._ask(epoch, name, ask))
            self._asking[key].add_done_callback(lambda _: self._asking.pop(key))
        return await asyncio.shield(self._asking[key])

    async def _ask(self, epoch: str, name: str, ask: Callable[[], Awaitable[Orders]]) -> Orders:
        async with self._backend.lock(f"orders {epoch} {name}", ORDERS_LOCK_TIMEOUT):
            epoch, found = await self._noted_orders(name)
            if found:  # by another replica, meanwhile
                ORDER_LOOKUPS.labels("shared").inc()
                return found[0]
            ORDER_LOOKUPS.labels("miss").inc()
            orders = await ask()
            await self._backend.write("orders", epoch, {name: msgspec.json.encode(orders)})
            return orders

    async def _noted_orders(self, name: str) -> tuple[str, tuple[Orders] | None]:
        epoch, noted = await self._backend.read("orders", [name])
        try:
            orders = msgspec.json.decode(noted[name], type=Orders)
        except (KeyError, msgspec.DecodeError, ValueError, OverflowError, RecursionError):
            return epoch, None
        return epoch, (orders,) if orders is None or all(map(_plausible, orders)) else None

    def invalidating_write(self, methods: Iterable[str], path: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Let a write pass, and forget what it may have changed by one of the methods; `path` are its path's segments."""
        return self._backend.invalidating({topic for method in methods for topic in _touched(method, path)})

    def invalidating_bundle(self, bundle: JsonObject) -> AbstractAsyncContextManager[None]:
        """Let an untagged Bundle pass, and forget what it may have changed."""
        topics: set[Namespace] = set()
        entries = bundle.get("entry")
        for entry in objects(entries.outlines if isinstance(entries, ParsedEntries) else entries):
            request, resource = entry.get("request"), entry.get("resource")
            asked = request if isinstance(request, dict) else {}
            if asked.get("method") != "GET":
                kind = resource.get("resourceType") if isinstance(resource, dict) else None  # wins over the url on HAPI
                topics |= _touched(str(asked.get("method")), [*path_segments(str(asked.get("url"))), str(kind)])
        return self._backend.invalidating(topics)

    async def record_submission(self, patient: str | None, now: datetime, fingerprint: str = "") -> None:
        """Note that something new of the patient was stored now, and the fingerprint of what it came in."""
        if patient:
            epoch, _ = await self._backend.read("submitted", ())
            noted = f"{now.isoformat()} {fingerprint}".strip().encode()
            await self._backend.write("submitted", epoch, {_hashed(patient): noted})

    async def last_submission(self, patient: str | None, fingerprint: str = "") -> datetime | None:
        """Tell when something new of the patient was last stored; None where it is not known, or came in this very submission.

        Who lost the answer to a submission sends it again.
        """
        if not patient:
            return None
        name = _hashed(patient)
        _, noted = await self._backend.read("submitted", [name])
        try:
            said, _, of = noted[name].decode().partition(" ")
            moment = datetime.fromisoformat(said)
        except (KeyError, ValueError):
            return None
        if fingerprint and of == fingerprint:
            return None
        return min(moment, datetime.now(UTC)) if moment.tzinfo else None

    async def generation(self) -> str:
        """Give what changes whenever what is known of stored entries has to be forgotten."""
        return (await self._backend.read("known", ()))[0]

    async def stored_entries(self, identities: Iterable[str]) -> tuple[str, dict[str, Stored]]:
        """Give the epoch, and where those of the identities that are remembered are stored."""
        epoch, noted = await self._backend.read("known", list(identities))
        return epoch, {identity: stored for identity, value in noted.items() if (stored := _stored(value))}

    async def add_stored_entries(self, stored: Mapping[str, Stored], epoch: str) -> None:
        """Remember where entries are stored, as the upstream has confirmed it.

        `epoch` is what it was before the upstream was asked: nothing is remembered if a write came by since then, which
        may have deleted what was just found.
        """
        values = {identity: f"{one.location} {one.etag or ''}".encode() for identity, one in stored.items()}
        await self._backend.write("known", epoch, values)

    async def invalidate_stored_entries(self) -> None:
        """Forget where entries are stored, because some were changed or deleted."""
        async with self._backend.invalidating(_KNOWN):
            pass

    @asynccontextmanager
    async def patient_lock(self, patient: str) -> AsyncIterator[PatientLock]:
        """Wait for the patient's turn: one submission of a patient at a time saves lost races; correctness does not need it."""
        mine = self._turns.setdefault(patient, asyncio.Lock())
        async with mine, self._backend.lock(f"patient {patient}", LOCK_TIMEOUT) as turn:
            yield turn


def _touched(method: str, path: Collection[str]) -> frozenset[Namespace]:
    """Tell what a write may change: a create nothing that is known of other resources, an operation anything."""
    if "_search" in path:
        return frozenset()
    topics: set[Namespace] = set()
    operation = any(part.startswith("$") for part in path)
    if operation or "ServiceRequest" in path or "Patient" in path:
        topics.add("orders")
    cascading = method == "DELETE"  # servers can be made to delete what references the deleted
    if operation or cascading or (method != "POST" and not _REMEMBERED.isdisjoint(path)):
        topics.add("known")
    return frozenset(topics)


def _plausible(order: StandingOrder) -> bool:
    """Tell whether an order is one that could have been read from a ServiceRequest, as far as the judge rests on it."""
    spans = [span for each in order.schedules for span in (each.period, each.lookback) if span is not None]
    moments = [moment for each in order.schedules for moment in each.window or ()]
    return all(timedelta() < span <= LONGEST_PERIOD for span in spans) and all(moment.tzinfo for moment in moments)


def _stored(value: bytes) -> Stored | None:
    """Read what was remembered of an entry, if it looks like that."""
    location, _, etag = value.decode("latin-1").partition(" ")
    place = LOCATION.fullmatch(location)
    if not place or place[1] != location or (etag and not ETAG.fullmatch(etag)):
        return None
    return Stored(location, etag or None)


def _hashed(*parts: str) -> str:
    """Give a name that tells nobody who is meant."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
