"""Negotiation: the strategy in force, chosen by the upstream's CapabilityStatement, which is read again now and then."""

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

#: Where the statement is requested, in this order: HAPI's whole statement has 1.8 MB, these elements have 11 kB.
PATHS = (f"/metadata?_elements={_ELEMENTS}", "/metadata")

#: How long a statement counts (seconds): servers are replaced and upgraded.
VALID_SECONDS = 600.0

#: How long a submission waits for the statement (seconds).
TIMEOUT = 5.0


class StrategyInForce:
    """Holds the strategy; `fetch` returns the document at a path below the upstream's base, or None."""

    def __init__(
        self, settings: Settings, limiter: RateLimiter, fetch: Callable[[str], Awaitable[JsonObject | None]]
    ) -> None:
        self._settings = settings
        self._limiter = limiter
        self._fetch = fetch
        self._reading = asyncio.Lock()
        self._abilities: Abilities | None = None
        self._valid_until = 0.0
        self._strategy: Strategy | None = None

    async def get(self) -> Strategy:
        """Return the strategy by a recent statement. If none can be read, the last one counts, or else the defaults."""
        async with self._reading:
            if self._strategy is None or asyncio.get_running_loop().time() >= self._valid_until:
                self._use(await self._read())
            return self._strategy or Strategy()

    def doubt(self) -> None:
        """Read the statement again before the next submission: the server did not do what it declares."""
        self._valid_until = 0.0

    def too_large(self, entries: int) -> None:
        """Send fewer entries at once than these, until the statement is read again."""
        if self._strategy:
            fewer = min(max(1, entries // 2), self._strategy.entries or entries)
            self._strategy = replace(self._strategy, entries=fewer)
            self._limiter.at_most(self._strategy.entries)

    async def _read(self) -> Abilities | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                for path in PATHS:
                    statement = await self._fetch(path)
                    if statement and (able := abilities(statement, self._settings.allow)):
                        return able
        except (RequestRefused, TimeoutError):
            pass  # `_use` logs it
        return None

    def _use(self, able: Abilities | None) -> None:
        given = self._settings.upstream
        known = able or self._abilities
        if able:
            self._valid_until = asyncio.get_running_loop().time() + VALID_SECONDS
        chosen = strategy(known or Abilities(), send=given.send, create=given.create, entries=given.bundle_entries)
        before = self._strategy
        if before is None or (chosen.sending, chosen.creating) != (before.sending, before.creating):
            level = logging.INFO if known else logging.WARNING
            statement = "read" if known else "unreadable"
            log("upstream strategy", level, send=chosen.sending.name, create=chosen.creating.name, statement=statement)
        self._abilities, self._strategy = known, chosen
        self._limiter.at_most(chosen.entries)
