"""Requests to the upstream that failed: how they are counted, and what the client is answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.observability.metrics import UPSTREAM_ERRORS

#: The server did not take a chunk, however often it was sent.
_LATE = "the server did not take the entry in time; sending it again is safe"
UNAVAILABLE = refuse(503, "upstream-unavailable", _LATE, code="transient")

#: The server failed at a chunk.
_LASTING = "the server fails (500) at the entry; if that goes on, it can't handle something in the entry: correct it"
FAILED = refuse(503, "upstream-failed", _LASTING, code="exception")

#: Exceptions, the label of the metric, and what the client is answered; the first row that fits counts (RFC 9110, 15.6.3 to
#: 15.6.5).
_FAULTS = (
    (
        (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError),
        "refused",
        refuse(503, "upstream-unreachable", "the server behind this one can't be reached; try again", code="transient"),
    ),
    (
        (TimeoutError,),
        "timeout",
        refuse(504, "upstream-timeout", "the server behind this one did not answer in time; try again", code="timeout"),
    ),
    (
        (Exception,),
        "broken",
        refuse(502, "upstream-broken", "the server behind this one closed the connection; try again", code="transient"),
    ),
)


def fault(error: Exception) -> RequestRefused:
    """Count a request that failed, and return what the client is answered."""
    kind, refused = next((kind, refused) for types, kind, refused in _FAULTS if isinstance(error, types))
    UPSTREAM_ERRORS.labels(kind).inc()
    return RequestRefused(refused.status, refused.issues)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound the time of several requests; raises `RequestRefused` (504) when it is over."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise fault(error) from error
