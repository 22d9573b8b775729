"""What became of requests to the upstream that were not answered, or not well, and what that means for who asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.observability.metrics import UPSTREAM_ERRORS

#: What a transaction is answered with whose fate is unknown.
_LATE = "the server did not take it in time; sending it again is safe"
UNAVAILABLE = refuse(503, "upstream-unavailable", _LATE, code="transient")

#: What a transaction is answered with at which the upstream itself failed.
_LASTING = "the server fails (500) at it; if that goes on, something in the entry is what it can't digest: correct it"
FAILED = refuse(503, "upstream-failed", _LASTING, code="exception")

#: What became of a request that was not answered; the first row that fits counts (RFC 9110, 15.6.3 to 15.6.5).
_FAULTS = (
    (
        (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError),
        "refused",
        refuse(503, "upstream-unreachable", "the server behind this one can't be reached; try again", code="transient"),
    ),
    (
        (TimeoutError,),
        "timeout",
        refuse(504, "upstream-timeout", "the server behind this one is silent; try again", code="timeout"),
    ),
    (
        (Exception,),
        "broken",
        refuse(502, "upstream-broken", "the server behind this one broke off; try again", code="transient"),
    ),
)


def fault(error: Exception) -> RequestRefused:
    """Count a request that was not answered, and give what it means for who asked."""
    kind, refused = next((kind, refused) for types, kind, refused in _FAULTS if isinstance(error, types))
    UPSTREAM_ERRORS.labels(kind).inc()
    return RequestRefused(refused.status, refused.issues)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound what asks the upstream several times; raises `RequestRefused` (504) when the time is over."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise fault(error) from error
