"""The cache that the other packages use: patients' standing orders, and where entries are stored.

Values live in a backend, which may be shared by replicas. They are checked as strictly as a response from a server,
because others can write to a shared backend.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from weakref import WeakValueDictionary

import msgspec

from cgm_proxy.cache.backends import CacheBackend, LocalBackend, Namespace, PatientLock
from cgm_proxy.cache.valkey_backend import ValkeyBackend
from cgm_proxy.core.rest.responses import ETAG, LOCATION
from cgm_proxy.core.submission.orders import LONGEST_PERIOD, StandingOrder
from cgm_proxy.core.submission.outcomes import Stored
from cgm_proxy.observability.metrics import ORDER_LOOKUPS
from cgm_proxy.settings.loading import Settings

#: A patient's active orders; None if the upstream has no such patient.
Orders = tuple[StandingOrder, ...] | None

#: How long a submission waits for another replica's submission of the same patient (seconds) before it proceeds anyway.
LOCK_TIMEOUT = 10.0

#: How long a look-up of orders waits for another replica's look-up of the same orders (seconds) before it starts anyway.
ORDERS_LOCK_TIMEOUT = 3.0


@dataclass(slots=True)
class Invalidation:
    """The invalidation by one write. `linger` is how long the write may go on after its end was last looked for (seconds)."""

    linger: float = 0.0


class Cache:
    """Patients' orders (also that a patient has none), stored entries by identity, and the locks on patients."""

    def __init__(self, settings: Settings) -> None:
        shared = settings.cache.shared
        self._backend: CacheBackend = ValkeyBackend(settings, shared) if shared else LocalBackend(settings.cache)
        self._order_lookups: dict[tuple[str, str], asyncio.Task[Orders]] = {}
        self._patient_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._lingering: set[asyncio.Task[None]] = set()
        self.unseen_seconds = settings.upstream.read_timeout
        """How long a write may still go on if its end was not seen (seconds): as long again as one that is waited for."""
        self.source = self._backend.source

    async def start(self) -> None:
        """Connect the backend. A shared backend that is unavailable does not stop the start."""
        await self._backend.start()

    async def stop(self) -> None:
        """Disconnect the backend. Writes that may go on are not ended there, as if this replica had died in the middle."""
        await self._backend.stop()
        for task in self._lingering:
            task.cancel()
        await asyncio.gather(*self._lingering, return_exceptions=True)

    @property
    def available(self) -> bool:
        """Whether the backend can be used now. Without it, every look-up goes to the upstream."""
        return self._backend.available

    # ---- orders

    async def orders(self, patient: str, authorization: str, look_up: Callable[[], Awaitable[Orders]]) -> Orders:
        """Return the patient's orders as this authorization may see them.

        Callers that miss the same orders at the same time share one look-up. If it fails, its error is raised to all
        of them and nothing is cached.
        """
        key = _hashed(patient, authorization)
        generation, cached = await self._cached_orders(key)
        if cached:
            ORDER_LOOKUPS.labels("hit").inc()
            return cached[0]
        if not generation:  # a write is in flight, or the backend is unavailable: others may not use this result
            ORDER_LOOKUPS.labels("miss").inc()
            return await look_up()
        task_key = (generation, key)
        if task_key in self._order_lookups:
            ORDER_LOOKUPS.labels("shared").inc()
        else:
            task = asyncio.ensure_future(self._look_up_orders(generation, key, look_up))
            task.add_done_callback(lambda _: self._order_lookups.pop(task_key))
            self._order_lookups[task_key] = task
        return await asyncio.shield(self._order_lookups[task_key])

    async def _look_up_orders(self, generation: str, key: str, look_up: Callable[[], Awaitable[Orders]]) -> Orders:
        async with self._backend.lock(f"orders {generation} {key}", ORDERS_LOCK_TIMEOUT):
            generation, cached = await self._cached_orders(key)
            if cached:  # by another replica, while this one waited for the lock
                ORDER_LOOKUPS.labels("shared").inc()
                return cached[0]
            ORDER_LOOKUPS.labels("miss").inc()
            orders = await look_up()
            await self._backend.write("orders", generation, {key: msgspec.json.encode(orders)})
            return orders

    async def _cached_orders(self, key: str) -> tuple[str, tuple[Orders] | None]:
        """Return the generation and the cached orders, in a tuple because they may be None themselves."""
        generation, values = await self._backend.read("orders", [key])
        try:
            orders = msgspec.json.decode(values[key], type=Orders)
        except (KeyError, msgspec.DecodeError, ValueError, OverflowError, RecursionError):
            return generation, None
        return generation, (orders,) if orders is None or all(map(_is_plausible, orders)) else None

    # ---- stored entries

    async def generation(self) -> str:
        """Return the generation of the stored entries, or "" while they can't be cached."""
        return (await self._backend.read("known", ()))[0]

    async def stored_entries(self, identities: Iterable[str]) -> tuple[str, dict[str, Stored]]:
        """Return the generation, and where the entries of those identities that are cached are stored."""
        generation, values = await self._backend.read("known", list(identities))
        return generation, {identity: stored for identity, value in values.items() if (stored := _stored(value))}

    async def add_stored_entries(self, stored: Mapping[str, Stored], generation: str) -> None:
        """Cache where entries are stored, by identity, as the upstream has confirmed it.

        `generation` was read before the upstream was asked. Nothing is cached if another one has begun since then: a
        write that passed through may have deleted what was just found.
        """
        values = {identity: f"{entry.location} {entry.etag or ''}".encode() for identity, entry in stored.items()}
        await self._backend.write("known", generation, values)

    async def invalidate_stored_entries(self) -> None:
        """Invalidate all stored entries, because some were found changed or deleted."""
        async with self._backend.invalidating({"known"}):
            pass

    # ---- invalidation by writes that pass through

    @asynccontextmanager
    async def invalidating(self, affected: Collection[Namespace]) -> AsyncIterator[Invalidation]:
        """Invalidate what a write may change (`cache.writes`), when the write has ended; until then nothing of it is trusted.

        The context surrounds the write. If the write may go on afterwards, the invalidation lingers.
        """
        invalidation = Invalidation()
        async with AsyncExitStack() as write:
            await write.enter_async_context(self._backend.invalidating(affected))
            try:
                yield invalidation
            finally:
                if invalidation.linger:
                    self._lingering.add(task := asyncio.create_task(_end(write.pop_all(), invalidation.linger)))
                    task.add_done_callback(self._lingering.discard)

    # ---- when a patient last submitted

    async def record_submission(self, patient: str | None, now: datetime, fingerprint: str = "") -> None:
        """Record that something new of the patient was stored now, and the fingerprint of the submission it came in."""
        if patient:
            generation, _ = await self._backend.read("submitted", ())
            value = f"{now.isoformat()} {fingerprint}".strip().encode()
            await self._backend.write("submitted", generation, {_hashed(patient): value})

    async def last_submission(self, patient: str | None, fingerprint: str = "") -> datetime | None:
        """Return when something new of the patient was last stored, or None if that is not known.

        Also None if it was stored by a submission with this very fingerprint: a submitter that lost the response sends
        the same submission again, and that is not too often.
        """
        if not patient:
            return None
        key = _hashed(patient)
        _, values = await self._backend.read("submitted", [key])
        try:
            text, _, last_fingerprint = values[key].decode().partition(" ")
            moment = datetime.fromisoformat(text)
        except (KeyError, ValueError):
            return None
        if fingerprint and last_fingerprint == fingerprint:
            return None
        return min(moment, datetime.now(UTC)) if moment.tzinfo else None

    # ---- locks

    @asynccontextmanager
    async def patient_lock(self, patient: str) -> AsyncIterator[PatientLock]:
        """Acquire the patient's lock, first within this process, then among replicas.

        One submission of a patient at a time saves conflicts upstream. Correctness depends on it only where the upstream
        can't create conditionally; such a caller checks `PatientLock.held` before each step.
        """
        local_lock = self._patient_locks.setdefault(patient, asyncio.Lock())
        async with local_lock, self._backend.lock(f"patient {patient}", LOCK_TIMEOUT) as lock:
            yield lock


async def _end(write: AsyncExitStack, seconds: float) -> None:
    """End a write that may have gone on until now."""
    async with write:
        await asyncio.sleep(seconds)


def _is_plausible(order: StandingOrder) -> bool:
    """Whether the order could have been read from a ServiceRequest: its periods are in range, its times have a zone."""
    spans = [span for schedule in order.schedules for span in (schedule.period, schedule.lookback) if span is not None]
    moments = [moment for schedule in order.schedules for moment in schedule.window or ()]
    return all(timedelta() < span <= LONGEST_PERIOD for span in spans) and all(moment.tzinfo for moment in moments)


def _stored(value: bytes) -> Stored | None:
    """Parse a cached location and ETag; None if it does not look like one."""
    location, _, etag = value.decode("latin-1").partition(" ")
    match = LOCATION.fullmatch(location)
    if not match or match[1] != location or (etag and not ETAG.fullmatch(etag)):
        return None
    return Stored(location, etag or None)


def _hashed(*parts: str) -> str:
    """Return a key that does not reveal the patient or the credentials."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
