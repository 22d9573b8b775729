"""A client of Valkey (or Redis) that never raises and never blocks for long: each call has a short timeout.

After a failure no further call is made until a check in the background succeeds. A dead Valkey costs one timeout in all,
not one for each call.
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

#: Most connections of one proxy. If all are in use, a call waits for one within its timeout.
CONNECTIONS = 16

#: The first and the longest pause between checks of a Valkey that has failed (seconds).
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0

#: Longest part of an error's text that is logged (characters); it names commands, users and hosts.
LOGGED = 200

T = TypeVar("T")


class Valkey:
    """One Valkey server.

    `recover` is awaited at the start and after each failure, and may use `client`; calls are made once it succeeds.
    """

    def __init__(self, url: str, timeout: float, recover: Callable[[], Awaitable[None]]) -> None:
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
        self._recover = recover
        self._checking: asyncio.Task[None] | None = None
        self._fault = ""
        self.up = False
        """Whether calls are made now."""

    async def start(self) -> None:
        """Check whether Valkey can be used; if not, keep checking in the background."""
        self._set_up(up=True)
        if not await self._recovered():
            self.mark_down()

    async def stop(self) -> None:
        """Make no more calls, and close the connections."""
        self._set_up(up=False)
        if self._checking:
            self._checking.cancel()
            await asyncio.wait([self._checking])
        await self.client.aclose()

    async def call(self, command: Callable[..., Awaitable[T]], *arguments: Any) -> T | None:
        """Return the result of the command, or None if it failed or Valkey is down."""
        if not self.up:
            return None
        result, error = await self._bounded(command(*arguments))
        if error and not isinstance(error, exceptions.OutOfMemoryError):  # a full Valkey can still be read
            self.mark_down()
        return result

    def mark_down(self) -> None:
        """Make no more calls until a check in the background succeeds."""
        if self.up:
            self._set_up(up=False)
            log("shared memory is away", logging.WARNING, fault=self._fault)
            self._checking = asyncio.create_task(self._check())

    async def _check(self) -> None:
        """Check, with growing pauses, until Valkey can be used again."""
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with contextlib.suppress(exceptions.RedisError, OSError):
                # Idle connections may lead to a server that is no longer the primary.
                await self._pool.disconnect(inuse_connections=False)
            if await self._recovered():
                break
        self._set_up(up=True)
        log("shared memory is back")

    def _set_up(self, *, up: bool) -> None:
        self.up = up
        SHARED_UP.set(up)

    async def _recovered(self) -> bool:
        _, error = await self._bounded(self._recover())
        return error is None

    async def _bounded(self, command: Awaitable[T]) -> tuple[T | None, Exception | None]:
        """Return the result, or the error, which is counted."""
        try:
            async with asyncio.timeout(self._timeout):
                return await command, None
        except (exceptions.RedisError, OSError, ValueError, RecursionError) as error:
            SHARED_FAULTS.labels(_kind(error)).inc()
            self._fault = f"{type(error).__name__}: {error}"[:LOGGED]
            return None, error


def _kind(error: Exception) -> str:
    """Return the metric's label: "timeout", "refused" (no connection, or it was lost) or "error" (an error response)."""
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return "timeout"
    lost = isinstance(error, exceptions.ConnectionError | OSError)
    return "refused" if lost and not isinstance(error, exceptions.AuthenticationError) else "error"
