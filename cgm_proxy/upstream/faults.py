"""Requests to the upstream that failed without a response: how they are counted, and what the client is answered.

The relay and the submissions share one table: the same fault has the same rule id and status everywhere.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.observability.metrics import UPSTREAM_ERRORS

#: The server did not take a chunk, and its retries are used up.
_LATE = "the server did not take the entry in time; sending it again is safe"
UNAVAILABLE = refuse(503, "upstream-unavailable", _LATE, code="transient")

#: The server failed at a chunk.
_LASTING = "the server fails (500) at the entry; if that goes on, it can't handle something in the entry: correct it"
FAILED = refuse(503, "upstream-failed", _LASTING, code="exception")

#: Exceptions of a request, the label of the metric, and what the client is answered; the first row that fits counts (RFC 9110,
#: 15.6.3 to 15.6.5).
_FAULTS = (
    (
        (aiohttp.ClientSSLError, ssl.SSLError),
        "tls",
        refuse(502, "upstream-tls", "the TLS certificate or handshake of the FHIR server failed", code="transient"),
    ),
    (
        (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError),
        "refused",
        refuse(503, "upstream-unreachable", "the FHIR server can't be reached; try again", code="transient"),
    ),
    (
        (TimeoutError,),
        "timeout",
        refuse(504, "upstream-timeout", "the FHIR server did not answer in time; try again", code="timeout"),
    ),
    (
        (Exception,),
        "broken",
        refuse(
            502,
            "upstream-broken",
            "the FHIR server closed the connection without a valid response; it may have processed the request",
            code="transient",
        ),
    ),
)


def refusal_of(error: Exception) -> RequestRefused:
    """Return what the client is answered if a request upstream failed with this exception."""
    refused = next(refused for types, _, refused in _FAULTS if isinstance(error, types))
    return RequestRefused(refused.status, refused.issues)


def count_fault(error: Exception) -> RequestRefused:
    """Count a request that failed on behalf of a submission, and return what the client is answered."""
    UPSTREAM_ERRORS.labels(next(kind for types, kind, _ in _FAULTS if isinstance(error, types))).inc()
    return refusal_of(error)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound the time of several requests; raises `RequestRefused` (504) when it is over."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise count_fault(error) from error
