"""The queue of kept submissions: stored first, then worked on a few at a time, whatever happens to the process meanwhile.

A submission is on the disk before the proxy answers that it was accepted. After a crash the next start works on it
again. That stores nothing twice upstream, because each create is conditional on its entry's identity; entries that the
first attempt created answer 200 instead of 201. A regular stop lets the jobs in progress end, within a time limit, and
leaves the others to the next start.

A submission that crashes the process would crash it again after each start. Therefore attempts are counted on the disk
before they begin, and a submission is given up after `ATTEMPTS`. When a crash interrupts several of them, only one is the
cause. So after a crash the interrupted ones are suspects: they run alone, one after another, before all others.

On a full disk, a job ends with a short result that says so. If even that can't be stored, it is held in memory until it can,
and the job's place is free for the next one.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
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

#: How often a submission may crash the process before it is given up.
ATTEMPTS = 3

#: Pauses before another attempt after the upstream or the store failed (seconds); the last one repeats.
PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)

#: How often expired results are removed (seconds).
SWEEP_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job: a Bundle in JSON, and whether the upstream failed, so that another attempt may do better."""

    data: bytes
    failed: bool


#: Works on a job, given its request and its body as they were stored.
Work = Callable[[bytes, bytearray], Awaitable[JobResult]]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class JobQueue:
    """Accepts submissions, works on them in order, and finds their results. All calls to `store` run in one thread."""

    def __init__(self, limits: loading.JobSettings, store: JobStore) -> None:
        self._limits = limits
        self._store = store
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._slots = asyncio.Semaphore(limits.at_once)
        self._suspects: set[str] = set()
        self._suspect_lock = asyncio.Lock()
        self._suspects_done = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._in_progress: set[str] = set()
        #: The results that could not be stored yet, each with the time when it expires.
        self._unstored: dict[str, tuple[bytes, float]] = {}
        self._stopping = False

    @classmethod
    def open(cls, limits: loading.JobSettings) -> "JobQueue | None":
        """Open the file that the settings name, or return None if they name none.

        Raises `SettingsError` if the file can't be used.
        """
        if limits.path is None:
            return None
        try:
            return cls(limits, SqliteStore(Path(limits.path), limits))
        except StoreUnusable as unusable:
            raise loading.SettingsError(f"jobs.path: {limits.path} {unusable}") from None

    async def start(self, work: Work) -> None:
        """Continue with the unfinished jobs, and remove expired results from now on."""
        self._work = work
        unfinished = await self._in_thread(self._store.unfinished)
        if unfinished:
            log("kept submissions taken up again", count=len(unfinished))
        self._suspects = {key for key, attempts in unfinished if attempts}
        if not self._suspects:
            self._suspects_done.set()
        for key, _ in unfinished:
            self._schedule(key)
        self._sweeping = asyncio.create_task(self._sweep())

    async def accept(
        self, patient: str, response_format: str, request: bytes, body: Buffer, credentials: str = ""
    ) -> str:
        """Store a submission and return its id. Raises `StoreFull` or `StoreFailed`; then nothing is stored."""
        secret = secrets.token_urlsafe(32)  # 256 bits
        job_id = f"{self._limits.replica}.{secret}" if self._limits.replica else secret
        job = Job(_key(job_id), patient, response_format, request, body, owner_hash(job_id, credentials))
        await self._in_thread(self._store.add, job, time.time())
        if not self._stopping:
            self._schedule(job.key)
        return job_id

    async def find(self, job_id: str) -> JobStatus | None:
        """Return the status of a job, or None if there is no such job. Raises `StoreFailed`."""
        key = _key(job_id)
        status = await self._in_thread(self._store.find, key, time.time())
        if status and (unstored := self._unstored.get(key)):
            result, expires = unstored
            return replace(status, expires=expires, size=len(result))
        return status

    async def result(self, job_id: str) -> AsyncIterator[bytes]:
        """Yield a result in pieces. They end early if the result is removed meanwhile."""
        if unstored := self._unstored.get(_key(job_id)):
            yield unstored[0]
            return
        place = 0
        while piece := await self._in_thread(self._store.piece, _key(job_id), place):
            yield piece
            place += 1

    async def delete(self, job_id: str) -> None:
        """Stop working on a job and remove all of it. Raises `StoreFailed`."""
        key = _key(job_id)
        if task := self._tasks.get(key):
            task.cancel(CANCELLED)
            await asyncio.wait([task])
            metrics.JOBS.labels("cancelled").inc()
        await self._in_thread(self._store.delete, key)

    async def stop(self, seconds: float) -> None:
        """Begin no more jobs, wait up to `seconds` for those in progress, and leave the rest to the next start."""
        self._stopping = True
        self._sweeping.cancel()
        for key in self._tasks.keys() - self._in_progress:
            self._tasks[key].cancel()
        for timeout in (seconds, None):  # then cancel the rest, and wait until they have put themselves back
            if remaining := list(self._tasks.values()):
                await asyncio.wait(remaining, timeout=timeout)
            for task in self._tasks.values():
                task.cancel()
        if unfinished := await self._in_thread(self._store.unfinished):
            log("kept submissions are left to the next start", count=len(unfinished))

    async def close(self) -> None:
        """Close the store. No call is possible afterwards."""
        await self._in_thread(self._store.close)
        self._thread.shutdown()

    def _schedule(self, key: str) -> None:
        task = self._tasks[key] = asyncio.create_task(self._run(key))
        task.add_done_callback(lambda _: self._ended(key))
        metrics.JOBS_WAITING.set(len(self._tasks))

    def _ended(self, key: str) -> None:
        del self._tasks[key]
        metrics.JOBS_WAITING.set(len(self._tasks))
        self._suspects.discard(key)
        if not self._suspects:
            self._suspects_done.set()

    async def _run(self, key: str) -> None:
        """Work on a job when its turn comes: a suspect alone, any other one in a free slot once there are no suspects."""
        if key in self._suspects:
            async with self._suspect_lock:
                finished = await self._finish(key)
        else:
            await self._suspects_done.wait()
            async with self._slots:
                finished = await self._finish(key)
        if not finished:
            await self._finish_later(key)

    async def _finish(self, key: str) -> bool:
        """Work on a job and store its result; return whether that was possible. If cancelled, put the job back."""
        self._in_progress.add(key)
        try:
            if attempts := await self._with_retries(self._store.begin, key):
                result = await self._result(key, attempts)
                return await self._stored(key, result, time.time() + self._limits.kept_seconds)
        except asyncio.CancelledError:
            await self._put_back(key)
            raise
        finally:
            self._in_progress.discard(key)
        return True

    async def _stored(self, key: str, result: bytes, expires: float) -> bool:
        """Store a result, or a short one that says that it is lost; if neither is possible, hold the short one in memory."""
        lost = _refused(async_pattern.result_not_stored())
        reason = "no room"
        try:
            if await self._in_thread(self._store.finish, key, result, expires, lost):
                return True
        except StoreFailed as failed:
            reason = str(failed)
            self._unstored[key] = lost, expires
        log("result of a kept submission lost", logging.ERROR, reason=reason)
        return key not in self._unstored

    async def _finish_later(self, key: str) -> None:
        """Store a result that is held in memory, as soon as that is possible."""
        result, expires = self._unstored[key]
        try:
            await self._with_retries(self._store.finish, key, result, expires, result)
        except asyncio.CancelledError:
            await self._put_back(key)
            raise
        finally:
            del self._unstored[key]

    async def _put_back(self, key: str) -> None:
        with suppress(StoreFailed):  # then one attempt too many is counted
            await self._in_thread(self._store.put_back, key)

    async def _result(self, key: str, attempts: int) -> bytes:
        """Return the result Bundle of a job, or one that says why there is none."""
        if attempts > ATTEMPTS:
            log("kept submission given up", logging.ERROR, attempts=ATTEMPTS)
            metrics.JOBS.labels("given_up").inc()
            return _refused(async_pattern.given_up_refusal(ATTEMPTS))
        try:
            data = await self._work_on(key)
        except Exception:  # noqa: BLE001 -- the submitter gets a result that says so, and the other jobs continue
            log("kept submission failed", logging.ERROR, exc_info=True)
            metrics.JOBS.labels("failed").inc()
            return _refused(async_pattern.failed_refusal())
        metrics.JOBS.labels("finished").inc()
        limit = self._limits.kept_bytes
        return data if len(data) <= limit else _refused(async_pattern.result_too_large(limit))

    async def _work_on(self, key: str) -> bytes:
        """Return the result of a job, after more attempts if the upstream fails, within `jobs.patience`."""
        deadline = time.monotonic() + self._limits.patience
        pauses = _pauses()
        while True:
            request, body = await self._with_retries(self._store.load, key)
            result = await self._work(request, body)
            pause = next(pauses)
            if not result.failed or time.monotonic() + pause > deadline:
                return result.data
            await asyncio.sleep(pause)

    async def _sweep(self) -> None:
        """Remove expired results, until cancelled."""
        while True:
            with suppress(StoreFailed):
                await self._in_thread(self._store.sweep, time.time())
            await asyncio.sleep(SWEEP_EVERY)

    async def _with_retries(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Call the store until it succeeds: a full disk will have room again, and the job is kept until then."""
        pauses = _pauses()
        while True:
            try:
                return await self._in_thread(call, *arguments)
            except StoreFailed as failed:
                log("kept submissions can't be reached", logging.ERROR, reason=str(failed))
            await asyncio.sleep(next(pauses))

    async def _in_thread(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def owner_hash(job_id: str, credentials: str) -> str:
    """Return a hash of credentials, salted with the job's id, which the file does not hold."""
    return hashlib.sha256(f"{job_id}\n{credentials}".encode()).hexdigest()


def _pauses() -> Iterator[float]:
    return chain(PAUSES, repeat(PAUSES[-1]))


def _refused(refusal: RequestRefused) -> bytes:
    return encode(async_pattern.refused_result_bundle(refusal))


def _key(job_id: str) -> str:
    """Return the hash under which a job is stored, so that the file does not reveal its id."""
    return hashlib.sha256(job_id.encode()).hexdigest()
