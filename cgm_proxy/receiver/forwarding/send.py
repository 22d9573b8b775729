"""Sends entries upstream in one request, or one after another, and reads the result of each."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.rest import create_requests
from cgm_proxy.core.rest.reactions import REACTIONS
from cgm_proxy.core.rest.responses import (
    LOST,
    EntryResult,
    Retry,
    UpstreamRefusal,
    UpstreamResponse,
    read_bundle_response,
    read_single_response,
)
from cgm_proxy.core.rest.strategy import Strategy
from cgm_proxy.core.submission.plan import AcceptedEntry, size_of
from cgm_proxy.offload import offload
from cgm_proxy.upstream.client import JSON, Requester, UpstreamClient

Results = Sequence[EntryResult] | UpstreamRefusal | Retry


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends the entries of one submission, as its submitter; `prefer` is the submitter's `return` preference."""

    upstream: UpstreamClient
    requester: Requester
    prefer: str

    async def send(self, entries: Sequence[AcceptedEntry], locations: Mapping[str, str], strategy: Strategy) -> Results:
        """Send entries once: return one result for each, or one for all; `locations` replace references.

        The rate limiter learns how long it took, or that the server failed.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        if strategy.sending.bundled:
            results = await self._bundled(entries, locations, strategy)
        else:
            results = await self._one_by_one(entries, locations, strategy)
        if isinstance(results, UpstreamRefusal):
            return results
        retries = [results] if isinstance(results, Retry) else [each for each in results if isinstance(each, Retry)]
        if any(REACTIONS[retry.cause].slows for retry in retries):
            self.upstream.limiter.failed(began)
        elif not isinstance(results, Retry):
            self.upstream.limiter.stored(len(entries), clock() - began)
        return results

    async def _bundled(
        self, entries: Sequence[AcceptedEntry], locations: Mapping[str, str], strategy: Strategy
    ) -> Results:
        body = await offload(size_of(entries), create_requests.bundle, entries, locations, strategy)
        response = await self._request("POST", "", body, {})
        if isinstance(response, Retry):
            return response
        return read_bundle_response(response, len(entries), whole=strategy.sending.whole)

    async def _one_by_one(
        self, entries: Sequence[AcceptedEntry], locations: Mapping[str, str], strategy: Strategy
    ) -> Results:
        """Send entries one after another; once the server is busy or gone, the others are not sent."""
        results: list[EntryResult] = []
        for each in entries:
            written = await offload(size_of([each]), create_requests.single, each, locations, strategy)
            request, fields, resource = written
            response = await self._request(request["method"], f"/{request['url']}", resource, fields)
            result = response if isinstance(response, Retry) else read_single_response(response, each.entry.type)
            results.append(result)
            if isinstance(result, Retry) and result.cause in {"busy", "lost"}:
                break
        return [*results, *[Retry("busy")] * (len(entries) - len(results))]

    async def _request(
        self, method: str, path: str, body: bytes, fields: Mapping[str, str]
    ) -> UpstreamResponse | Retry:
        headers = {"Content-Type": JSON, "Prefer": f"return={self.prefer}", **fields}
        try:
            return await self.upstream.write(method, path, body, self.requester, headers)
        except RequestRefused as fault:
            return Retry("busy") if fault.status == 503 else LOST  # 503: there was no connection to send it on
