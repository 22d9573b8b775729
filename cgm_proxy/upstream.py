"""The FHIR server behind the proxy, as submissions need it: reads, searches and transactions.

What a submitter may see is decided by the upstream: reads use the submitter's own Authorization, or the configured service
token; writes always use the submitter's.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from cgm_proxy.core import confirmed
from cgm_proxy.core.body import encode
from cgm_proxy.core.bundle import localizer, objects
from cgm_proxy.core.errors import Json, RequestRefused, refuse
from cgm_proxy.core.identity import SYSTEM, token
from cgm_proxy.core.plan import Stored
from cgm_proxy.metrics import UPSTREAM_SECONDS
from cgm_proxy.pace import Pace
from cgm_proxy.settings import Settings
from cgm_proxy.upstream_faults import FAILED, UNAVAILABLE, fault

JSON = "application/fhir+json"

#: Statuses below 500 after which the same request may be answered otherwise: a lost race (HAPI-0550, HAPI-2745), overload.
TRANSIENT = frozenset({408, 409, 425, 429})

#: Statuses from 500 that stay: any other one may be a restart's, a gateway's or an overload's.
LASTING = frozenset({501, 505})

#: Pause before a request is sent again for the first time, seconds; each further one is three times as long.
FIRST_PAUSE = 0.05

#: Longest pause before a request is sent again, seconds.
LONGEST_PAUSE = 5.0

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

#: The rule of a read that the upstream refuses for what it asks.
REJECTED = "upstream-rejected"


@dataclass(frozen=True, slots=True)
class Submitter:
    """On whose behalf the upstream is asked: the headers to send along, never logged."""

    headers: Mapping[str, str]

    @property
    def credentials(self) -> str:
        """Give all by which an upstream may tell submitters apart: what one may see is not remembered for another."""
        return "\n".join(f"{name}: {self.headers.get(name, '')}" for name in CREDENTIALS)


class ChunkRefused(Exception):  # noqa: N818 -- it reads as what happened
    """The upstream refused a transaction for a reason that sending it again does not change."""

    def __init__(self, status: int, outcome: Json) -> None:
        super().__init__(status)
        self.status = status
        self.outcome = outcome


class ChunkFailed(RequestRefused):
    """The upstream failed at a transaction every time (500), and said so itself: one entry of it may be the reason."""


class Upstream:
    """Ask the upstream; every failure is a `RequestRefused` (502, 503, 504) unless a method says otherwise."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._base = settings.upstream.url.rstrip("/")
        self._token = settings.upstream.token
        self._retries = settings.upstream.retries
        self._session = session
        self.pace = Pace(settings.forward)
        self._localize = localizer(settings.listen.public_url, settings.upstream.url)
        self._typed: bool | None = None
        self._largest = LARGEST * settings.limits.body_bytes
        self._timeout = aiohttp.ClientTimeout(
            total=settings.limits.seconds,
            connect=settings.upstream.connect_timeout,
            sock_read=settings.upstream.read_timeout,
        )

    async def patient(self, reference: str, submitter: Submitter) -> bool:
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
        submitter: Submitter,
        *,
        pages: int = MOST_PAGES,
        own: bool = False,
    ) -> list[Json]:
        """Search with parameters in the body, which keeps them out of logs; never from the server's own cache.

        With `own`, the submitter's Authorization is used even where there is a service token.
        """
        form = urlencode(parameters, safe="|:/,").encode()
        more = {"Content-Type": "application/x-www-form-urlencoded", "Cache-Control": "no-cache"}
        reader = submitter if own else self._reader(submitter)
        status, headers, body = await self._look("POST", f"/{kind}/_search", reader, form, more)
        resources: list[Json] = []
        for _ in range(pages):
            _demand_ok(status, headers, f"search {kind} (SMART scope patient/{kind}.rs)")
            page = _document(body)
            resources += confirmed.resources(page, kind)
            following = confirmed.next_page(page, kind)
            if following is None or pages == 1:
                break
            status, headers, body = await self._look("GET", following, reader)
        return resources

    async def read(self, references: Iterable[str], submitter: Submitter) -> dict[str, Json]:
        """Read stored resources by `Type/id`; what is not found, or not to be seen, is left out."""
        found: dict[str, Json] = {}
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
        self, kind: str, identities: Sequence[str], patient: str, submitter: Submitter
    ) -> dict[str, Stored]:
        """Find which identities are stored, as resources of one type about the patient."""
        parameters = {
            "identifier": ",".join(token(identity) for identity in identities),
            "_elements": "identifier,subject,patient",
            "_count": str(len(identities) + 1),
        }
        wanted = set(identities)
        return {
            identifier["value"]: place
            for resource in await self.search(kind, parameters, submitter)
            if self._about(resource) in {None, patient} and (place := confirmed.located(resource))
            for identifier in objects(resource.get("identifier"))
            if identifier.get("system") == SYSTEM and identifier.get("value") in wanted
        }

    async def transact(
        self, bundle: bytes, count: int, submitter: Submitter, prefer: str, *, once: bool = False
    ) -> list[Stored]:
        """Send a transaction of `count` conditional creates, again while that can help; every create is conditional.

        Raises `ChunkRefused` for a refusal that stays, and `RequestRefused` (503) when the fate of the transaction is
        unknown: it may be sent again safely. With `once`, it is not sent again here.
        """
        headers = {"Content-Type": JSON, "Prefer": f"return={prefer}"}
        pause, wanted, failed = 0.0, None, False
        for _ in range(1 if once else self._retries + 1):
            await asyncio.sleep(_pause(pause, wanted))
            pause, wanted, failed = pause * 3 or FIRST_PAUSE, None, False
            began = asyncio.get_running_loop().time()
            try:
                status, answered, body = await self._ask("POST", "", submitter, bundle, headers)
            except RequestRefused:
                self.pace.failed(began)
                continue
            if status < 300 and (stored := confirmed.confirmation(body, count)):
                self.pace.stored(count, asyncio.get_running_loop().time() - began)
                return stored
            if status == 429 or status >= 500:
                self.pace.failed(began)
            if _stays(status):
                raise ChunkRefused(status, confirmed.document(body) or {})
            wanted, failed = answered.get("Retry-After"), status == 500 and confirmed.document(body) is not None
        raise ChunkFailed(503, FAILED.issues) if failed else RequestRefused(503, UNAVAILABLE.issues)

    async def batch(self, bundle: Json, submitter: Submitter) -> list[Json]:
        """Send a batch as it is, once, and give the response's entries."""
        status, headers, body = await self._ask("POST", "", submitter, encode(bundle), {"Content-Type": JSON})
        _demand_ok(status, headers, "post a batch")
        return objects(_document(body).get("entry"))

    async def metadata(self, query: str, accept: str, submitter: Submitter) -> tuple[int, Mapping[str, str], bytes]:
        """Get the CapabilityStatement in the submitter's format: status, header fields and body."""
        path = f"/metadata?{query}" if query else "/metadata"
        return await self._ask("GET", path, submitter, None, {"Accept": accept})

    async def takes_typed_conditions(self) -> bool:
        """Tell whether the upstream is a HAPI, which looks conditions up together only if they name the type.

        HAPI 8.8.0, TransactionProcessor.preFetchConditionalUrls: a POST's condition is prefetched if it contains a `?`;
        other servers get FHIR's own form.
        """
        if self._typed is None:
            try:
                status, _, body = await self._look("GET", "/metadata?_elements=software", Submitter({}))
            except RequestRefused:
                return False  # FHIR's own form serves everywhere; the next submission asks again
            software = (confirmed.document(body) or {}).get("software") if status == 200 else None
            typed = isinstance(software, dict) and "hapi" in str(software.get("name")).lower()
            self._typed = typed if status < 500 else None
        return bool(self._typed)

    async def ready(self) -> bool:
        """Tell whether the upstream answers at all."""
        try:
            status, _, _ = await self._ask("GET", "/metadata?_summary=true", Submitter({}))
        except RequestRefused:
            return False
        return status < 500

    def _about(self, resource: Json) -> str | None:
        reference = confirmed.about(resource)
        return reference and self._localize(reference).partition("/_history/")[0]

    def _reader(self, submitter: Submitter) -> Submitter:
        if not self._token:
            return submitter
        headers = CIMultiDict(submitter.headers)
        headers["Authorization"] = f"Bearer {self._token}"
        return Submitter(headers)

    async def _look(
        self,
        method: str,
        path: str,
        submitter: Submitter,
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
        submitter: Submitter,
        body: bytes | None = None,
        more: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = CIMultiDict(submitter.headers)
        headers.update({"Accept": JSON, **(more or {})})
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
        raise RequestRefused(status, refuse(status, "upstream-authority", text, code="forbidden").issues, kept)
    if status < 500 and status not in TRANSIENT:
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


def _document(body: bytes) -> Json:
    if (document := confirmed.document(body)) is None:
        raise refuse(502, "upstream-answer", "the server's answer is not FHIR JSON; try again", code="transient")
    return document


def _stays(status: int) -> bool:
    """Tell whether a refusal is one that sending again does not change."""
    return (300 <= status < 500 and status not in TRANSIENT) or status in LASTING


def _pause(longest: float, retry_after: str | None) -> float:
    if retry_after and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), LONGEST_PAUSE)
    return min(longest, LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311 -- it spreads retries, it keeps no secret
