"""The FHIR server behind the proxy, as submissions need it: reads, searches and writes.

What a submitter may see is decided by the upstream: reads use the submitter's own Authorization, or the configured service
token; writes always use the submitter's.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.issues import RequestRefused, refuse
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.rest import confirmed
from cgm_proxy.core.rest.responses import CAUSES, UpstreamResponse
from cgm_proxy.core.rest.strategy import URN, name
from cgm_proxy.core.submission.identity import IDENTITY_SYSTEM, search_token
from cgm_proxy.core.submission.plan import Stored
from cgm_proxy.observability.metrics import UPSTREAM_SECONDS
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.settings.loading import Settings
from cgm_proxy.upstream.faults import fault
from cgm_proxy.upstream.negotiation import StrategyInForce
from cgm_proxy.upstream.pacing import RateLimiter

JSON = "application/fhir+json"

#: Pages of one search that are followed at most.
MOST_PAGES = 1000

#: Header fields by which submitters prove who they are.
CREDENTIALS = ("Authorization", "Cookie", "X-API-Key")

#: Statuses after which a look-up is done without: the submitter may create but not search.
NOT_ALLOWED = frozenset({401, 403})

#: Identities in one search; its form body stays under 64 KiB.
SEARCHED = 200

#: Longest answer that is read, in largest submissions: a representation holds more than what was sent.
LARGEST = 4

#: Answers up to this size are read however small submissions must be (bytes): HAPI's CapabilityStatement has 1.8 MB.
LARGEST_AT_LEAST = 16 * 2**20

#: The rule of a read that the upstream refuses for what it asks.
REJECTED = "upstream-rejected"


#: What answers may come compressed as. HAPI 8.8 writes what is not compressed in pieces of some 40 bytes, each sent by itself: an
#: answer to 64 creates is 650 of them (60 kB), whose reading costs five times what it costs to inflate 3 kB.
CODING = "gzip"


@dataclass(frozen=True, slots=True)
class Requester:
    """On whose behalf the upstream is asked: the headers to send along, never logged."""

    headers: Mapping[str, str]

    @property
    def credentials(self) -> str:
        """Give all by which an upstream may tell submitters apart: what one may see is not remembered for another."""
        return "\n".join(f"{name}: {self.headers.get(name, '')}" for name in CREDENTIALS)


class UpstreamClient:
    """Ask the upstream; every failure is a `RequestRefused` (502, 503, 504) unless a method says otherwise."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, traffic: StreamStats | None = None) -> None:
        self._base = settings.upstream.url.rstrip("/")
        self._token = settings.upstream.token
        self._session = session
        self.pace = RateLimiter(settings.forward, traffic)
        self._localize = BaseUrls.of(settings.listen.public_url, settings.upstream.url).localize
        self.strategy = StrategyInForce(settings, self.pace, self._statement)
        self._largest = max(LARGEST * settings.limits.body_bytes, LARGEST_AT_LEAST)
        self._timeout = aiohttp.ClientTimeout(
            total=settings.limits.seconds,
            connect=settings.upstream.connect_timeout,
            sock_read=settings.upstream.read_timeout,
        )

    async def patient(self, reference: str, submitter: Requester) -> bool:
        """Tell whether the patient exists, asked with the submitter's own authority.

        Raises `RequestRefused` with the upstream's 401 or 403 where the submitter may not know.
        """
        status, headers, _ = await self._look("GET", f"/{reference}?_elements=id", submitter)
        if status in {404, 410}:
            return False
        _demand_ok(status, headers, "read the Patient (SMART scope patient/Patient.r)")
        return True

    async def search(
        self,
        kind: str,
        parameters: Mapping[str, str] | Sequence[tuple[str, str]],
        submitter: Requester,
        *,
        pages: int = MOST_PAGES,
        own: bool = False,
    ) -> list[JsonObject]:
        """Search with parameters in the body, which keeps them out of logs; never from the server's own cache.

        With `own`, the submitter's Authorization is used even where there is a service token.
        """
        form = urlencode(parameters, safe="|:/,").encode()
        more = {"Content-Type": "application/x-www-form-urlencoded", "Cache-Control": "no-cache"}
        reader = submitter if own else self._reader(submitter)
        status, headers, body = await self._look("POST", f"/{kind}/_search", reader, form, more)
        resources: list[JsonObject] = []
        for _ in range(pages):
            _demand_ok(status, headers, f"search {kind} (SMART scope patient/{kind}.rs)")
            page = _document(body)
            resources += confirmed.resources(page, kind)
            following = confirmed.next_page(page, kind)
            if following is None or pages == 1:
                break
            status, headers, body = await self._look("GET", following, reader)
        return resources

    async def read(self, references: Iterable[str], submitter: Requester) -> dict[str, JsonObject]:
        """Read stored resources by `Type/id`; what is not found, or not to be seen, is left out."""
        found: dict[str, JsonObject] = {}
        by_type: dict[str, list[str]] = {}
        for reference in references:
            kind, _, name = reference.partition("/")
            by_type.setdefault(kind, []).append(name)
        for kind, ids in by_type.items():
            for start in range(0, len(ids), SEARCHED):
                part = ids[start : start + SEARCHED]
                wanted = {"_id": ",".join(part), "_count": str(len(part))}
                try:
                    resources = await self.search(kind, wanted, submitter)
                except RequestRefused as refused:
                    if refused.status not in NOT_ALLOWED:
                        raise
                    break
                found |= {f"{kind}/{resource['id']}": resource for resource in resources}
        return found

    async def stored(
        self, kind: str, identities: Sequence[str], patient: str, submitter: Requester
    ) -> dict[str, Stored]:
        """Find which identities are stored, as resources of one type about the patient."""
        holders = await self.holders(kind, identities, submitter)
        return {
            identity: place
            for identity, resources in holders.items()
            for resource in resources
            if self.about(resource) in {None, patient} and (place := confirmed.location_of(resource))
        }

    async def holders(
        self, kind: str, identities: Sequence[str], submitter: Requester, *, by_id: bool = False
    ) -> dict[str, list[JsonObject]]:
        """Find the stored resources of one type by identity, as an identifier or, with `by_id`, as the id."""
        terms = [name(identity) if by_id else search_token(identity) for identity in identities]
        parameters = {
            "_id" if by_id else "identifier": ",".join(terms),
            "_elements": "identifier,subject,patient",
            "_count": str(len(identities) + 1),
        }
        wanted = set(identities)
        found: dict[str, list[JsonObject]] = {}
        for resource in await self.search(kind, parameters, submitter):
            given = [i.get("value") for i in objects(resource.get("identifier")) if i.get("system") == IDENTITY_SYSTEM]
            for identity in {f"{URN}{resource['id']}"} if by_id else set(map(str, given)):
                if identity in wanted:
                    found.setdefault(identity, []).append(resource)
        return found

    def about(self, resource: JsonObject) -> str | None:
        """Give whom a stored resource is about, as `Patient/id`."""
        reference = confirmed.about(resource)
        return reference and self._localize(reference).partition("/_history/")[0]

    async def write(
        self, method: str, path: str, body: bytes, submitter: Requester, more: Mapping[str, str]
    ) -> UpstreamResponse:
        """Send what creates entries, once; it may have been done where this is refused, but with 503."""
        status, headers, data = await self._ask(method, path, submitter, body, more)
        return UpstreamResponse(status, headers, data, datetime.now(UTC))

    async def batch(self, bundle: JsonObject, submitter: Requester) -> list[JsonObject]:
        """Send a batch as it is, once, and give the response's entries."""
        status, headers, body = await self._ask("POST", "", submitter, encode(bundle), {"Content-Type": JSON})
        _demand_ok(status, headers, "post a batch")
        return objects(_document(body).get("entry"))

    async def metadata(self, query: str, accept: str, submitter: Requester) -> tuple[int, Mapping[str, str], bytes]:
        """Get the CapabilityStatement in the submitter's format: status, header fields and body."""
        path = f"/metadata?{query}" if query else "/metadata"
        return await self._ask("GET", path, submitter, None, {"Accept": accept})

    async def _statement(self, path: str) -> JsonObject | None:
        status, _, body = await self._look("GET", path, Requester({}))
        return confirmed.document(body) if status == 200 else None

    async def ready(self) -> bool:
        """Tell whether the upstream answers at all."""
        try:
            status, _, _ = await self._ask("GET", "/metadata?_summary=true", Requester({}))
        except RequestRefused:
            return False
        return status < 500

    def _reader(self, submitter: Requester) -> Requester:
        if not self._token:
            return submitter
        headers = CIMultiDict(submitter.headers)
        headers["Authorization"] = f"Bearer {self._token}"
        return Requester(headers)

    async def _look(
        self,
        method: str,
        path: str,
        submitter: Requester,
        body: bytes | None = None,
        more: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask what changes nothing; once more where the connection broke, since one from the pool may just have died."""
        try:
            return await self._ask(method, path, submitter, body, more)
        except RequestRefused as refused:
            if refused.status != 502:
                raise
            return await self._ask(method, path, submitter, body, more)

    async def _ask(
        self,
        method: str,
        path: str,
        submitter: Requester,
        body: bytes | None = None,
        more: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = CIMultiDict(submitter.headers)
        headers.update({"Accept": JSON, "Accept-Encoding": CODING, **(more or {})})
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with self._session.request(
                method,
                URL(self._base + path, encoded=True),
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                data = await _whole(response, self._largest)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise fault(error) from error
        UPSTREAM_SECONDS.observe(loop.time() - started)
        return response.status, response.headers, data


def _demand_ok(status: int, headers: Mapping[str, str], purpose: str) -> None:
    """Raise `RequestRefused` unless the upstream answered 2xx: its own 401, 403 or 429, else 502."""
    if status < 300:
        return
    if status in {401, 403, 429}:
        said = [(name, value) for name, value in headers.items() if name.lower() in {"www-authenticate", "retry-after"}]
        kept = {name: ", ".join(value for other, value in said if other == name) for name, _ in said}
        text = f"the server answered {status} to a request to {purpose}; the submitter's token, or the service token, must allow it"
        code = "login" if status == 401 else "forbidden"
        raise RequestRefused(status, refuse(status, "upstream-authority", text, code=code).issues, kept)
    if status < 500 and status not in CAUSES:
        raise refuse(502, REJECTED, f"the server answered {status} to a request to {purpose}", code="not-supported")
    raise refuse(
        502, "upstream-answer", f"the server answered {status} to a request to {purpose}; try again", code="transient"
    )


async def _whole(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Read a body; raises `aiohttp.ClientPayloadError` where it does not end."""
    read = bytearray()
    async for piece in response.content.iter_any():
        read += piece
        if len(read) > most:
            raise aiohttp.ClientPayloadError("longer than any answer")
    return bytes(read)


def _document(body: bytes) -> JsonObject:
    if (document := confirmed.document(body)) is None:
        raise refuse(502, "upstream-answer", "the server's answer is not FHIR JSON; try again", code="transient")
    return document
