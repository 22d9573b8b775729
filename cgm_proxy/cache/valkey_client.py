"""Ask Valkey (or Redis) without ever depending on it: each question is bounded by a short time, and a failure is an answer.

After a failure nothing is asked until a look in the background finds it well again: a dead Valkey costs one timeout.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cgm_proxy.observability.logs import log
from cgm_proxy.observability.metrics import SHARED_FAULTS, SHARED_UP

#: Connections of one proxy at most; who finds none free waits as for an answer.
CONNECTIONS = 16

#: Pauses between looks at a Valkey that has failed: the first, and the longest (seconds).
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0

#: Longest part of an error's text that is logged (characters); it holds names of commands, users and hosts.
LOGGED = 200

T = TypeVar("T")


class Valkey:
    """One Valkey server; `settle` is what must succeed before it is asked again after a failure, and may ask by `client`."""

    def __init__(self, url: str, timeout: float, settle: Callable[[], Awaitable[None]]) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        self.client: Redis = Redis.from_pool(pool)
        self._pool = pool
        self._timeout = timeout
        self._settle = settle
        self._looking: asyncio.Task[None] | None = None
        self._fault = ""
        self.up = False
        """Whether it is asked at all now."""

    async def start(self) -> None:
        """Look whether it is there; if not, go on looking in the background."""
        self._show(up=True)
        if not await self._settled():
            self.distrust()

    async def stop(self) -> None:
        """Ask nothing more, and close the connections."""
        self._show(up=False)
        if self._looking:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self.client.aclose()

    async def ask(self, question: Callable[..., Awaitable[T]], *arguments: Any) -> T | None:
        """Give the answer, or None where there is none in time, or none is waited for now."""
        if not self.up:
            return None
        answer, fault = await self._bounded(question(*arguments))
        if fault and not isinstance(fault, exceptions.OutOfMemoryError):  # a full one can still be read
            self.distrust()
        return answer

    def distrust(self) -> None:
        """Ask nothing more until it is well again."""
        if self.up:
            self._show(up=False)
            log("shared memory is away", logging.WARNING, fault=self._fault)
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with contextlib.suppress(exceptions.RedisError, OSError):
                await self._pool.disconnect(inuse_connections=False)  # they may lead to who was the primary
            if await self._settled():
                break
        self._show(up=True)
        log("shared memory is back")

    def _show(self, *, up: bool) -> None:
        self.up = up
        SHARED_UP.set(up)

    async def _settled(self) -> bool:
        _, fault = await self._bounded(self._settle())
        return fault is None

    async def _bounded(self, question: Awaitable[T]) -> tuple[T | None, Exception | None]:
        """Give the answer or what went wrong, which is counted."""
        try:
            async with asyncio.timeout(self._timeout):
                return await question, None
        except (exceptions.RedisError, OSError, ValueError, RecursionError) as error:
            SHARED_FAULTS.labels(_kind(error)).inc()
            self._fault = f"{type(error).__name__}: {error}"[:LOGGED]
            return None, error


def _kind(error: Exception) -> str:
    """Tell a Valkey that is slow from one that is not there, and from one that answers with an error."""
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return "timeout"
    lost = isinstance(error, exceptions.ConnectionError | OSError)
    return "refused" if lost and not isinstance(error, exceptions.AuthenticationError) else "error"
