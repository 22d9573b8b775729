"""The FHIR server behind the proxy, as submissions need it: reads, searches and writes.

The upstream decides what a submitter may see: reads use the submitter's own Authorization, or the configured service token;
writes always use the submitter's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import TypeVar
from urllib.parse import urlencode

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.http.header_fields import ANONYMOUS
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest import responses
from cgm_proxy.core.rest.reactions import cause_of
from cgm_proxy.core.rest.responses import UpstreamResponse
from cgm_proxy.core.rest.strategy import URN, logical_id
from cgm_proxy.core.submission.identity import IDENTITY_SYSTEM, search_token
from cgm_proxy.core.submission.outcomes import Stored
from cgm_proxy.observability.metrics import UPSTREAM_SECONDS
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.faults import count_fault
from cgm_proxy.upstream.negotiation import StrategyInForce
from cgm_proxy.upstream.pacing import RateLimiter

JSON = "application/fhir+json"

#: The largest number of pages of one search that are followed.
MOST_PAGES = 1000

#: Statuses of a submitter who may create but not search: the proxy goes on without the search.
NOT_ALLOWED = frozenset({401, 403})

#: Identities in one search; the form in its body stays below 64 KiB.
SEARCHED = 200

#: Searches of one submission that run at the same time.
CONCURRENT_SEARCHES = 4

#: The longest response that is read, in multiples of the largest submission: a representation holds more than what was sent.
LARGEST = 4

#: Responses up to this size are read, however small the largest submission is (bytes): HAPI's CapabilityStatement has 1.8 MB.
LARGEST_AT_LEAST = 16 * 2**20

#: The rule id of a search that the upstream refuses because of its parameters.
REJECTED = "upstream-rejected"

#: Bodies from this size on are given to aiohttp as a stream (bytes): it warns that larger ones could block the event loop.
LARGE_BODY = 2**20

#: The content coding that is asked for. HAPI 8.8 writes an uncompressed response in pieces of some 40 bytes and sends each
#: piece by itself: a response to 64 creates is 650 of them (60 kB), and reading it takes five times as long as inflating 3 kB.
CODING = "gzip"


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Requester:
    """The submitter on whose behalf the upstream is asked: the header fields to send along, which are never logged."""

    headers: Mapping[str, str]

    @property
    def credentials(self) -> str:
        """Everything by which an upstream may tell submitters apart: what one may see is not cached for another."""
        fields = ((name.lower(), value) for name, value in self.headers.items())
        return "\n".join(f"{name}: {value}" for name, value in sorted(fields) if name not in ANONYMOUS)


class UpstreamClient:
    """Sends requests upstream; every failure is a `RequestRefused` (502, 503, 504) unless a method says otherwise."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, stats: StreamStats | None = None) -> None:
        self._base = settings.upstream.url.rstrip("/")
        self._token = settings.upstream.token
        self._session = session
        self.limiter = RateLimiter(settings.forward, stats)
        self._localize = settings.bases.localize
        self.strategy = StrategyInForce(settings, self.limiter, self._statement)
        self._largest = max(LARGEST * settings.limits.body_bytes, LARGEST_AT_LEAST)
        self._timeout = aiohttp.ClientTimeout(
            total=settings.limits.seconds,
            connect=settings.upstream.connect_timeout,
            sock_read=settings.upstream.read_timeout,
        )

    # Reads -----------------------------------------------------------------------------------------------------------

    async def exists(self, reference: str, requester: Requester) -> bool:
        """Whether a resource exists, by `Type/id`, as far as the submitter may know.

        Raises `RequestRefused` with the upstream's 401 or 403 if the submitter may not know.
        """
        resource_type = reference.partition("/")[0]
        status, headers, _ = await self._request("GET", f"/{reference}?_elements=id", requester, repeatable=True)
        if status in {404, 410}:
            return False
        _require_success(status, headers, f"read the {resource_type} (SMART scope patient/{resource_type}.r)")
        return True

    async def search(
        self,
        resource_type: str,
        parameters: Mapping[str, str] | Sequence[tuple[str, str]],
        requester: Requester,
        *,
        pages: int = MOST_PAGES,
        own: bool = False,
    ) -> list[JsonObject]:
        """Search with the parameters in the body, which keeps them out of logs, and bypass the server's own cache.

        With `own`, the submitter's Authorization is used even if there is a service token.
        """
        form = urlencode(parameters, safe="|:/,").encode()
        fields = {"Content-Type": "application/x-www-form-urlencoded", "Cache-Control": "no-cache"}
        reader = requester if own else self._reader(requester)
        status, headers, body = await self._request(
            "POST", f"/{resource_type}/_search", reader, form, fields, repeatable=True
        )
        resources: list[JsonObject] = []
        for _ in range(pages):
            _require_success(status, headers, f"search {resource_type} (SMART scope patient/{resource_type}.rs)")
            page = _document(body)
            resources += responses.resources(page, resource_type)
            following = responses.next_page(page, resource_type)
            if following is None or pages == 1:
                break
            status, headers, body = await self._request("GET", following, reader, repeatable=True)
        return resources

    async def read(
        self, references: Iterable[str], requester: Requester, *, own: bool = False
    ) -> dict[str, JsonObject]:
        """Read stored resources by `Type/id`; those that don't exist, or that the submitter may not see, are left out.

        With `own`, the submitter's Authorization is used even if there is a service token.
        """
        found: dict[str, JsonObject] = {}
        by_type: dict[str, list[str]] = {}
        for reference in references:
            resource_type, _, resource_id = reference.partition("/")
            by_type.setdefault(resource_type, []).append(resource_id)
        for resource_type, ids in by_type.items():
            try:
                found |= await self.read_type(resource_type, ids, requester, own=own)
            except RequestRefused as refused:
                if refused.status not in NOT_ALLOWED:
                    raise
        return found

    async def read_type(
        self, resource_type: str, ids: Sequence[str], requester: Requester, elements: str = "", *, own: bool = False
    ) -> dict[str, JsonObject]:
        """Read stored resources of one type by `Type/id`, whole or some of their elements; missing ones are left out."""
        found: dict[str, JsonObject] = {}
        for start in range(0, len(ids), SEARCHED):
            batch = ids[start : start + SEARCHED]
            query = {"_id": ",".join(batch), "_count": str(len(batch))} | ({"_elements": elements} if elements else {})
            resources = await self.search(resource_type, query, requester, own=own)
            found |= {f"{resource_type}/{resource['id']}": resource for resource in resources}
        return found

    async def stored(
        self, resource_type: str, identities: Sequence[str], patient: str, requester: Requester
    ) -> dict[str, Stored]:
        """Return where identities are stored as resources of one type about the patient."""
        holders = await self.holders(resource_type, identities, requester)
        return {
            identity: place
            for identity, resources in holders.items()
            for resource in resources
            if self.may_concern(resource, patient) and (place := responses.location_of(resource))
        }

    async def holders(
        self, resource_type: str, identities: Sequence[str], requester: Requester, *, by_id: bool = False
    ) -> dict[str, list[JsonObject]]:
        """Return the stored resources of one type by identity, which is an identifier or, with `by_id`, the id."""
        terms = [logical_id(identity) if by_id else search_token(identity) for identity in identities]
        parameters = {
            "_id" if by_id else "identifier": ",".join(terms),
            "_elements": "identifier,subject,patient",
            "_count": str(len(identities) + 1),
        }
        searched = set(identities)
        found: dict[str, list[JsonObject]] = {}
        for resource in await self.search(resource_type, parameters, requester):
            identifiers = [i for i in objects(resource.get("identifier")) if i.get("system") == IDENTITY_SYSTEM]
            values = {f"{URN}{resource['id']}"} if by_id else {str(i.get("value")) for i in identifiers}
            for identity in values & searched:
                found.setdefault(identity, []).append(resource)
        return found

    def may_concern(self, resource: JsonObject, patient: str) -> bool:
        """Whether a stored resource is about the patient (`Patient/id`), or about nobody."""
        reference = responses.subject_of(resource)
        return reference is None or self._localize(reference).partition("/_history/")[0] == patient

    async def metadata(self, query: str, accept: str, requester: Requester) -> tuple[int, Mapping[str, str], bytes]:
        """Request the CapabilityStatement in the submitter's format; return status, header fields and body."""
        path = f"/metadata?{query}" if query else "/metadata"
        return await self._request("GET", path, requester, None, {"Accept": accept})

    async def ready(self) -> bool:
        """Whether the upstream answers at all."""
        try:
            status, _, _ = await self._request("GET", "/metadata?_summary=true", Requester({}))
        except RequestRefused:
            return False
        return status < 500

    async def _statement(self, path: str) -> JsonObject | None:
        status, _, body = await self._request("GET", path, Requester({}), repeatable=True)
        return responses.document(body) if status == 200 else None

    # Writes ----------------------------------------------------------------------------------------------------------

    async def write(
        self, method: str, path: str, body: bytes, requester: Requester, fields: Mapping[str, str]
    ) -> UpstreamResponse:
        """Send a request that creates entries, once. If this raises, it may have been carried out, except with status 503."""
        status, headers, data = await self._request(method, path, requester, body, fields)
        return UpstreamResponse(status, headers, data, datetime.now(UTC))

    async def batch(self, bundle: JsonObject, requester: Requester) -> list[JsonObject]:
        """Send a batch as it is, once, and return the entries of the response."""
        status, headers, body = await self._request("POST", "", requester, encode(bundle), {"Content-Type": JSON})
        _require_success(status, headers, "post a batch")
        return objects(_document(body).get("entry"))

    # Requests --------------------------------------------------------------------------------------------------------

    def _reader(self, requester: Requester) -> Requester:
        """Return the requester with the service token, if one is configured."""
        if not self._token:
            return requester
        headers = CIMultiDict(requester.headers)
        headers["Authorization"] = f"Bearer {self._token}"
        return Requester(headers)

    async def _request(
        self,
        method: str,
        path: str,
        requester: Requester,
        body: bytes | None = None,
        fields: Mapping[str, str] | None = None,
        *,
        repeatable: bool = False,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request, a `repeatable` one once more if the connection broke: a pooled one may just have been closed."""
        headers = CIMultiDict(requester.headers)
        headers.update({"Accept": JSON, "Accept-Encoding": CODING, **(fields or {})})
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with self._session.request(
                method,
                URL(self._base + path, encoded=True),
                data=body if body is None or len(body) < LARGE_BODY else BytesIO(body),
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > self._largest:
                        raise aiohttp.ClientPayloadError("the response is too long")
        except (aiohttp.ClientError, TimeoutError) as error:
            refusal = count_fault(error)
            if repeatable and refusal.status == 502:
                return await self._request(method, path, requester, body, fields)
            raise refusal from error
        UPSTREAM_SECONDS.observe(clock() - started)
        return response.status, response.headers, bytes(data)


async def search_all(searches: Iterable[Callable[[], Awaitable[T]]], limit: asyncio.Semaphore) -> list[T]:
    """Carry out searches, as many at the same time as the limit allows; return their results in order."""

    async def limited(search: Callable[[], Awaitable[T]]) -> T:
        async with limit:
            return await search()

    return await asyncio.gather(*map(limited, searches))


def _require_success(status: int, headers: Mapping[str, str], purpose: str) -> None:
    """Raise `RequestRefused` unless the upstream answered 2xx: with its own 401, 403 or 429, else with 502."""
    if status < 300:
        return
    if status in {401, 403, 429}:
        kept = {
            name: value
            for name, value in _joined(headers).items()
            if name.lower() in {"www-authenticate", "retry-after"}
        }
        cure = "try again later" if status == 429 else "the submitter's token, or the service token, must allow it"
        text = f"the server answered {status} to a request to {purpose}; {cure}"
        code = {401: "login", 403: "forbidden", 429: "throttled"}[status]
        raise RequestRefused(status, refuse(status, "upstream-authority", text, code=code).issues, kept)
    if status < 500 and cause_of(status, explained=False, retry_after=False) == "refused":
        raise refuse(502, REJECTED, f"the server answered {status} to a request to {purpose}", code="not-supported")
    raise refuse(
        502, "upstream-answer", f"the server answered {status} to a request to {purpose}; try again", code="transient"
    )


def _joined(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the header fields with repeated ones joined (RFC 9110, 5.3)."""
    joined: dict[str, str] = {}
    for field, value in headers.items():
        joined[field] = f"{joined[field]}, {value}" if field in joined else value
    return joined


def _document(body: bytes) -> JsonObject:
    if (document := responses.document(body)) is None:
        raise refuse(502, "upstream-answer", "the server's response is not FHIR JSON; try again", code="transient")
    return document
