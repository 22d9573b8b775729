"""What the upstream can do, and so the strategy in force: read from its CapabilityStatement, again after a while or a doubt."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.strategy import Abilities, Strategy, abilities, strategy
from cgm_proxy.observability.logs import log
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.pacing import RateLimiter

_ELEMENTS = (
    "software,rest.mode,rest.interaction,rest.resource.type,rest.resource.conditionalCreate,rest.resource.updateCreate"
)

#: Where the statement is asked for, until it says what the server does: HAPI's whole statement has 1.8 MB, these elements 11 kB.
PATHS = (f"/metadata?_elements={_ELEMENTS}", "/metadata")

#: How long it is believed (seconds): servers are replaced, and learn.
KEPT = 600.0

#: How long a submission waits for it (seconds).
TIMEOUT = 5.0


class StrategyInForce:
    """Give the strategy; `ask` gives the document at a path below the upstream's base, or None."""

    def __init__(
        self, settings: Settings, pace: RateLimiter, ask: Callable[[str], Awaitable[JsonObject | None]]
    ) -> None:
        self._settings = settings
        self._pace = pace
        self._ask = ask
        self._reading = asyncio.Lock()
        self._able: Abilities | None = None
        self._until = 0.0
        self._strategy: Strategy | None = None
        self._learnt = 0

    async def get(self) -> Strategy:
        """Give it, by a statement that is not too old; by the last one, or FHIR's own way, where none can be read."""
        async with self._reading:
            if self._strategy is None or asyncio.get_running_loop().time() >= self._until:
                self._use(await self._read())
            return self._strategy or Strategy()

    def doubt(self) -> None:
        """Read the statement again before the next submission: the upstream did not do what it says."""
        self._until = 0.0

    def too_large(self, entries: int) -> None:
        """Learn, until the statement is read again, that so many entries at once are too many."""
        self._learnt = max(1, entries // 2)
        if self._strategy:
            self._strategy = replace(self._strategy, entries=min(self._learnt, self._strategy.entries or entries))
            self._pace.at_most(self._strategy.entries)

    async def _read(self) -> Abilities | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                for path in PATHS:
                    statement = await self._ask(path)
                    if statement and (able := abilities(statement, self._settings.allow)):
                        return able
        except (RequestRefused, TimeoutError):
            pass  # `_use` says so
        return None

    def _use(self, able: Abilities | None) -> None:
        given = self._settings.upstream
        known = able or self._able
        if able:
            self._until, self._learnt = asyncio.get_running_loop().time() + KEPT, 0
        made = strategy(known or Abilities(), send=given.send, create=given.create, entries=given.bundle_entries)
        if self._strategy is None or (made.sending, made.creating) != (self._strategy.sending, self._strategy.creating):
            level = logging.INFO if known else logging.WARNING
            statement = "read" if known else "unreadable"
            log("upstream strategy", level, send=made.sending.name, create=made.creating.name, statement=statement)
        self._able, self._strategy = known, made
        self._pace.at_most(made.entries)
