"""Submissions that are answered later: kept first, then worked on a few at a time, whatever ends the proxy meanwhile.

What is accepted here is on the disk before its submitter hears of it. A proxy that was killed in the middle begins again
after its start. That stores nothing twice, because each create is conditional on its entry's identity; what the first try
had created is answered 200 instead of 201. A proxy that is told to stop lets what is under way end in time, and leaves the rest to
its next start.

A submission that ends the process would end it again after each start. So attempts are counted on the disk before they
begin, and a submission is given up after `ATTEMPTS` of them. Of several that were under way only one is guilty: after
such an end they are worked on alone, one by one, before all others.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from cgm_proxy.core.codec.json_body import Buffer, encode
from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.submission import async_pattern
from cgm_proxy.jobs.sqlite_store import Job, JobStatus, JobStore, SqliteStore, StoreFailed, StoreUnusable
from cgm_proxy.observability import metrics
from cgm_proxy.observability.logs import log
from cgm_proxy.receiver.intake import CANCELLED
from cgm_proxy.settings import loading

#: How often a submission may end the process before it is given up.
ATTEMPTS = 3

#: Pauses before a submission is tried again, or the store is asked again, that failed (seconds); the last one repeats.
PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)

#: How often results that have expired are looked for (seconds).
SWEEP_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a submission: the result Bundle in JSON, and whether another try may fare better."""

    data: bytes
    failed: bool


#: Works on a submission, given its request and its body as they were kept.
Work = Callable[[bytes, bytearray], Awaitable[JobResult]]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class JobQueue:
    """Keep submissions and work on them; `store` is asked on a thread of its own."""

    def __init__(self, limits: loading.JobSettings, store: JobStore) -> None:
        self._limits = limits
        self._store = store
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._places = asyncio.Semaphore(limits.at_once)
        self._alone = asyncio.Lock()
        self._calm = asyncio.Event()
        self._suspects: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._under_way: set[str] = set()
        self._stopping = False

    @classmethod
    def open(cls, limits: loading.JobSettings) -> "JobQueue | None":
        """Open the file that the settings name, if they name one; raises `SettingsError` where it can't be used."""
        if limits.path is None:
            return None
        try:
            return cls(limits, SqliteStore(Path(limits.path), limits))
        except StoreUnusable as unusable:
            raise loading.SettingsError(f"jobs.path: {limits.path} {unusable}") from None

    async def start(self, work: Work) -> None:
        """Go on with what is not done; from now on remove results in time."""
        self._work = work
        unfinished = await self._ask(self._store.unfinished)
        if unfinished:
            log("kept submissions taken up again", count=len(unfinished))
        self._suspects = {key for key, attempts in unfinished if attempts}
        if not self._suspects:
            self._calm.set()
        for key, _ in unfinished:
            self._begin(key)
        self._sweeping = asyncio.create_task(self._sweep())

    async def accept(self, patient: str, wanted_format: str, asked: bytes, body: Buffer) -> str:
        """Keep a submission and give its id; raises `StoreFull` or `StoreFailed` with nothing kept."""
        secret = secrets.token_urlsafe(32)  # 256 bits
        name = f"{self._limits.replica}.{secret}" if self._limits.replica else secret
        job = Job(_key(name), patient, wanted_format, asked, body)
        await self._ask(self._store.add, job, time.time())
        if not self._stopping:
            self._begin(job.key)
        return name

    async def find(self, name: str) -> JobStatus | None:
        """Tell what is known of a submission; raises `StoreFailed`."""
        return await self._ask(self._store.find, _key(name), time.time())

    async def result(self, name: str) -> AsyncIterator[bytes]:
        """Give a result in pieces; they end early where it is removed meanwhile."""
        place = 0
        while piece := await self._ask(self._store.piece, _key(name), place):
            yield piece
            place += 1

    async def delete(self, name: str) -> None:
        """Stop working on a submission, and remove all of it; raises `StoreFailed`."""
        key = _key(name)
        if task := self._tasks.get(key):
            task.cancel(CANCELLED)
            await asyncio.wait([task])
            metrics.JOBS.labels("cancelled").inc()
        await self._ask(self._store.delete, key)

    async def stop(self, seconds: float) -> None:
        """Begin nothing more, wait so long for what is under way, and leave the rest to the next start."""
        self._stopping = True
        self._sweeping.cancel()
        for key in self._tasks.keys() - self._under_way:
            self._tasks[key].cancel()
        for patience in (seconds, None):
            if late := list(self._tasks.values()):
                await asyncio.wait(late, timeout=patience)
            for task in self._tasks.values():
                task.cancel()
        if left := await self._ask(self._store.unfinished):
            log("kept submissions are left to the next start", count=len(left))

    async def close(self) -> None:
        """Let go of the store; nothing is accepted any more."""
        await self._ask(self._store.close)
        self._thread.shutdown()

    def _begin(self, key: str) -> None:
        task = self._tasks[key] = asyncio.create_task(self._in_turn(key))
        task.add_done_callback(lambda _: self._ended(key))
        metrics.JOBS_WAITING.set(len(self._tasks))

    def _ended(self, key: str) -> None:
        del self._tasks[key]
        metrics.JOBS_WAITING.set(len(self._tasks))
        self._suspects.discard(key)
        if not self._suspects:
            self._calm.set()

    async def _in_turn(self, key: str) -> None:
        """Work on a submission when there is a place for it; on one that may have ended the process, with no other."""
        if key in self._suspects:
            async with self._alone:
                await self._finish(key)
        else:
            await self._calm.wait()
            async with self._places:
                await self._finish(key)

    async def _finish(self, key: str) -> None:
        self._under_way.add(key)
        try:
            if attempts := await self._surely(self._store.begin, key):
                result = await self._result(key, attempts)
                await self._surely(self._store.finish, key, result, time.time() + self._limits.kept_seconds)
        except asyncio.CancelledError:
            with suppress(StoreFailed):  # then one attempt too many is counted
                await self._ask(self._store.put_back, key)
            raise
        finally:
            self._under_way.discard(key)

    async def _result(self, key: str, attempts: int) -> bytes:
        """Give the result Bundle, or one that says why there is none."""
        if attempts > ATTEMPTS:
            log("kept submission given up", logging.ERROR, attempts=ATTEMPTS)
            metrics.JOBS.labels("given_up").inc()
            return _refused(async_pattern.given_up_refusal(ATTEMPTS))
        try:
            result = await self._tried(key)
        except Exception:  # noqa: BLE001 -- nobody waits here who could be told: this submission ends, the others go on
            log("kept submission failed", logging.ERROR, exc_info=True)
            metrics.JOBS.labels("failed").inc()
            return _refused(async_pattern.failed_refusal())
        metrics.JOBS.labels("finished").inc()
        most = self._limits.kept_bytes
        return result if len(result) <= most else _refused(async_pattern.result_too_large(most))

    async def _tried(self, key: str) -> bytes:
        """Work on a submission, again while the upstream fails and it is not too late."""
        deadline = time.monotonic() + self._limits.patience
        pauses = _pauses()
        while True:
            result = await self._work(*await self._surely(self._store.load, key))
            pause = next(pauses)
            if not result.failed or time.monotonic() + pause > deadline:
                return result.data
            await asyncio.sleep(pause)

    async def _sweep(self) -> None:
        """Remove results that have expired, until cancelled."""
        while True:
            with suppress(StoreFailed):
                await self._ask(self._store.sweep, time.time())
            await asyncio.sleep(SWEEP_EVERY)

    async def _surely(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Ask the store until it does it: a full disk is emptied some day, and the submission is kept until then."""
        pauses = _pauses()
        while True:
            try:
                return await self._ask(call, *arguments)
            except StoreFailed as failed:
                log("kept submissions can't be reached", logging.ERROR, reason=str(failed))
            await asyncio.sleep(next(pauses))

    async def _ask(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def _pauses() -> Iterator[float]:
    return chain(PAUSES, repeat(PAUSES[-1]))


def _refused(refused: RequestRefused) -> bytes:
    return encode(async_pattern.refused_result_bundle(refused))


def _key(name: str) -> str:
    """Give what is kept of an id."""
    return hashlib.sha256(name.encode()).hexdigest()
