"""Send entries upstream the way that it takes them, and give what became of each."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.rest import create_requests
from cgm_proxy.core.rest.responses import (
    FAILING,
    LOST,
    EntryResult,
    Retry,
    UpstreamRefusal,
    UpstreamResponse,
    of_bundle,
    of_single,
)
from cgm_proxy.core.rest.strategy import Strategy
from cgm_proxy.core.submission.plan import Identified
from cgm_proxy.upstream.client import JSON, Requester, UpstreamClient

Results = Sequence[EntryResult] | UpstreamRefusal | Retry


@dataclass(frozen=True, slots=True)
class Sender:
    """How one submission's entries are sent."""

    upstream: UpstreamClient
    submitter: Requester
    prefer: str
    strategy: Strategy

    async def send(self, ones: Sequence[Identified], locations: Mapping[str, str]) -> Results:
        """Send entries together, once: a result for each, or one for all; `locations` replace references."""
        began, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        results = await (self._bundled if self.strategy.sending.bundled else self._singly)(ones, locations)
        each = [results] if isinstance(results, UpstreamRefusal | Retry) else results
        if any(isinstance(result, Retry) and result.cause in FAILING for result in each):
            self.upstream.pace.failed(began)
        elif not isinstance(results, UpstreamRefusal | Retry):
            self.upstream.pace.stored(len(ones), loop.time() - began)
        return results

    async def _bundled(self, ones: Sequence[Identified], locations: Mapping[str, str]) -> Results:
        answered = await self._ask("POST", "", create_requests.bundle(ones, locations, self.strategy), {})
        if isinstance(answered, Retry):
            return answered
        return of_bundle(answered, len(ones), whole=self.strategy.sending.whole)

    async def _singly(self, ones: Sequence[Identified], locations: Mapping[str, str]) -> Results:
        """Send entries one after another, until the upstream fails."""
        results: list[EntryResult] = []
        for one in ones:
            request, fields, resource = create_requests.single(one, locations, self.strategy)
            answered = await self._ask(request["method"], f"/{request['url']}", resource, fields)
            result = answered if isinstance(answered, Retry) else of_single(answered, one.entry.type)
            results.append(result)
            if isinstance(result, Retry) and result.cause in {"busy", "lost"}:
                break
        return [*results, *[Retry("busy")] * (len(ones) - len(results))]

    async def _ask(self, method: str, path: str, body: bytes, fields: Mapping[str, str]) -> UpstreamResponse | Retry:
        headers = {"Content-Type": JSON, "Prefer": f"return={self.prefer}", **fields}
        try:
            return await self.upstream.write(method, path, body, self.submitter, headers)
        except RequestRefused as unanswered:
            return Retry("busy") if unanswered.status == 503 else LOST  # 503: there was no connection to send it by
