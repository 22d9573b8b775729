"""The FHIR server behind the proxy, as submissions need it: reads, searches and transactions.

What a submitter may see is decided by the upstream: reads use the submitter's own Authorization, or the configured service
token; writes always use the submitter's.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from cgm_proxy.core.body import decode, encode
from cgm_proxy.core.errors import Json, RequestRefused, refuse
from cgm_proxy.core.identity import token
from cgm_proxy.core.plan import Stored
from cgm_proxy.metrics import UPSTREAM_ERRORS, UPSTREAM_SECONDS
from cgm_proxy.settings import Settings

JSON = "application/fhir+json"

#: Statuses after which the same request may be answered otherwise: a lost race (HAPI-0550, HAPI-2745), overload, a restart.
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

#: Longest pause before a request is sent again, seconds.
LONGEST_PAUSE = 5.0

#: Pages of one search that are followed at most.
MOST_PAGES = 1000

#: Identities in one search; its form body stays under 64 KiB.
SEARCHED = 200


@dataclass(frozen=True, slots=True)
class Submitter:
    """On whose behalf the upstream is asked: the headers to send along, never logged."""

    headers: Mapping[str, str]


class ChunkRefused(Exception):  # noqa: N818 -- it reads as what happened
    """The upstream refused a transaction for a reason that sending it again does not change."""

    def __init__(self, status: int, outcome: Json) -> None:
        super().__init__(status)
        self.status = status
        self.outcome = outcome


class Upstream:
    """Ask the upstream; every failure is a `RequestRefused` (502, 503, 504) unless a method says otherwise."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._base = settings.upstream.url.rstrip("/")
        self._token = settings.upstream.token
        self._retries = settings.upstream.retries
        self._session = session
        self._typed: bool | None = None
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=settings.upstream.connect_timeout, sock_read=settings.upstream.read_timeout
        )

    async def patient(self, reference: str, submitter: Submitter) -> bool:
        """Tell whether the patient exists, asked with the submitter's own authority.

        Raises `RequestRefused` with the upstream's 401 or 403 where the submitter may not know.
        """
        status, headers, _ = await self._ask("GET", f"/{reference}?_elements=id", submitter)
        if status in {404, 410}:
            return False
        _demand_ok(status, headers, "read the Patient (SMART scope patient/Patient.r)")
        return True

    async def search(
        self, kind: str, parameters: Mapping[str, str], submitter: Submitter, *, pages: int = MOST_PAGES
    ) -> list[Json]:
        """Search with parameters in the body, which keeps them out of logs; never from the server's own cache."""
        form = urlencode(parameters, safe="|:/,").encode()
        more = {"Content-Type": "application/x-www-form-urlencoded", "Cache-Control": "no-cache"}
        status, headers, body = await self._ask("POST", f"/{kind}/_search", self._reader(submitter), form, more)
        resources: list[Json] = []
        for _ in range(pages):
            _demand_ok(status, headers, f"search {kind} (SMART scope patient/{kind}.rs)")
            page = _document(body)
            resources += [e["resource"] for e in page.get("entry", ()) if isinstance(e.get("resource"), dict)]
            following = next((link["url"] for link in page.get("link", ()) if link.get("relation") == "next"), None)
            if following is None or pages == 1:
                break
            status, headers, body = await self._ask("GET", self._page(following), self._reader(submitter))
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
                for resource in await self.search(kind, {"_id": ",".join(part), "_count": str(len(part))}, submitter):
                    found[f"{kind}/{resource.get('id')}"] = resource
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
            identifier["value"]: located(resource)
            for resource in await self.search(kind, parameters, submitter)
            if _about(resource) in {None, patient}
            for identifier in resource.get("identifier", ())
            if identifier.get("value") in wanted
        }

    async def transact(self, bundle: bytes, count: int, submitter: Submitter, prefer: str) -> list[Stored]:
        """Send a transaction of `count` conditional creates, again while that can help; every create is conditional.

        Raises `ChunkRefused` for a refusal that stays, and `RequestRefused` (503) when the fate of the transaction is
        unknown: it may be sent again safely.
        """
        headers = {"Content-Type": JSON, "Prefer": f"return={prefer}"}
        pause = 0.05
        for _ in range(self._retries + 1):
            try:
                status, answered, body = await self._ask("POST", "", submitter, bundle, headers)
            except RequestRefused:
                status, answered, body = 503, {}, b""
            if status < 300:
                return _created(body, count)
            if status not in TRANSIENT:
                raise ChunkRefused(status, _outcome(body))
            await asyncio.sleep(_pause(pause, answered.get("Retry-After")))
            pause = min(pause * 3, LONGEST_PAUSE)
        raise refuse(
            503,
            "upstream-unavailable",
            "the server did not take it in time; sending it again is safe",
            code="transient",
        )

    async def batch(self, bundle: Json, submitter: Submitter) -> list[Json]:
        """Send a batch as it is, once, and give the response's entries."""
        status, headers, body = await self._ask("POST", "", submitter, encode(bundle), {"Content-Type": JSON})
        _demand_ok(status, headers, "post a batch")
        entries = _document(body).get("entry", [])
        return [entry if isinstance(entry, dict) else {} for entry in entries]

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
            status, _, body = await self._ask("GET", "/metadata?_elements=software", Submitter({}))
            software = _document(body).get("software") if status == 200 else None
            self._typed = "hapi" in str((software or {}).get("name", "")).lower()
        return self._typed

    async def ready(self) -> bool:
        """Tell whether the upstream answers at all."""
        try:
            status, _, _ = await self._ask("GET", "/metadata?_summary=true", Submitter({}))
        except RequestRefused:
            return False
        return status < 500

    def _reader(self, submitter: Submitter) -> Submitter:
        if not self._token:
            return submitter
        headers = CIMultiDict(submitter.headers)
        headers["Authorization"] = f"Bearer {self._token}"
        return Submitter(headers)

    def _page(self, url: str) -> str:
        """Give a page's link relative to the base; a token is never sent elsewhere, wherever the link points."""
        _, separator, query = url.partition("?")
        path = url.partition("?")[0].rstrip("/").rpartition("/")[2]
        known = path if path[:1].isupper() else ""
        return (f"/{quote(known)}" if known else "") + separator + query

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
                data = await response.read()
        except TimeoutError as error:
            UPSTREAM_ERRORS.labels("timeout").inc()
            raise refuse(
                504, "upstream-timeout", "the server behind this one is silent; try again", code="timeout"
            ) from error
        except aiohttp.ClientConnectorError as error:
            UPSTREAM_ERRORS.labels("refused").inc()
            raise refuse(
                503, "upstream-unreachable", "the server behind this one can't be reached; try again", code="transient"
            ) from error
        except aiohttp.ClientError as error:
            UPSTREAM_ERRORS.labels("broken").inc()
            raise refuse(
                502, "upstream-broken", "the server behind this one broke off; try again", code="transient"
            ) from error
        UPSTREAM_SECONDS.observe(loop.time() - started)
        return response.status, response.headers, data


def _demand_ok(status: int, headers: Mapping[str, str], purpose: str) -> None:
    """Raise `RequestRefused` unless the upstream answered 2xx: its own 401, 403 or 429, else 502."""
    if status < 300:
        return
    if status in {401, 403, 429}:
        kept = {name: headers[name] for name in ("WWW-Authenticate", "Retry-After") if name in headers}
        text = f"the server answered {status} to a request to {purpose}; the submitter's token, or the service token, must allow it"
        raise RequestRefused(status, refuse(status, "upstream-authority", text, code="forbidden").issues, kept)
    raise refuse(
        502, "upstream-answer", f"the server answered {status} to a request to {purpose}; try again", code="transient"
    )


def located(resource: Json) -> Stored:
    """Give where a resource that was read or found is stored."""
    version = (resource.get("meta") or {}).get("versionId")
    place = f"{resource['resourceType']}/{resource['id']}"
    return Stored(f"{place}/_history/{version}", f'W/"{version}"') if version else Stored(place)


def _about(resource: Json) -> str | None:
    reference: str | None = (resource.get("subject") or resource.get("patient") or {}).get("reference")
    return reference


def _document(body: bytes) -> Json:
    try:
        return decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse(
            502, "upstream-answer", "the server's answer is not FHIR JSON; try again", code="transient"
        ) from error


def _created(body: bytes, count: int) -> list[Stored]:
    """Read a transaction-response: 201 with a location for each created entry, 200 for each that was stored already."""
    entries = _document(body).get("entry")
    if not isinstance(entries, list) or len(entries) != count:
        raise refuse(
            503,
            "upstream-answer",
            "the server's answer does not fit what was sent; sending it again is safe",
            code="transient",
        )
    return [_stored(entry) for entry in entries]


def _stored(entry: Json) -> Stored:
    response = entry.get("response") or {}
    status, location = str(response.get("status", "")), response.get("location")
    if not status.startswith(("200", "201")) or not isinstance(location, str):
        raise refuse(
            503, "upstream-answer", "the server's answer names no location; sending it again is safe", code="transient"
        )
    parts = location.split("/")
    start = -4 if "_history" in parts else -2
    etag = response.get("etag")
    if isinstance(etag, str) and '"' not in etag:  # HAPI writes the bare version
        etag = f'W/"{etag}"'
    return Stored("/".join(parts[start:]), etag, status.startswith("201"), entry.get("resource"))


def _outcome(body: bytes) -> Json:
    try:
        return decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}


def _pause(longest: float, retry_after: str | None) -> float:
    if retry_after and retry_after.isdigit():
        return min(float(retry_after), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1)  # noqa: S311 -- it spreads retries, it keeps no secret
