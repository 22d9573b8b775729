"""The references of one submission that the server turned out not to have: all entries with such a reference are refused.

References are looked up before a submission is judged (`receiver/referenced.py`). But a patient may be cached and deleted, or
something else deleted in the meantime; the server then refuses each entry for the same reason.
"""

import asyncio
from collections.abc import Iterable

from cgm_proxy.core.issues import RequestRefused
from cgm_proxy.core.rest.responses import UpstreamRefusal
from cgm_proxy.core.submission.outcomes import Refused
from cgm_proxy.upstream.client import Requester, UpstreamClient

#: How many references of one submission are looked up.
LOOKED_UP = 8


class GoneReferences:
    """What is known of the references that refusals named; a reference is looked up once."""

    def __init__(self, upstream: UpstreamClient, requester: Requester) -> None:
        self._upstream = upstream
        self._requester = requester
        self._known: dict[str, Refused | None] = {}
        self._looking_up = asyncio.Lock()

    def __bool__(self) -> bool:
        """Whether any reference is gone."""
        return any(self._known.values())

    async def learn(self, refusal: UpstreamRefusal, references: Iterable[str]) -> None:
        """Look up the references that a refusal names, with the submitter's own authority.

        The refusal alone proves nothing: it may name the patient of an entry that is refused for another reason.
        """
        async with self._looking_up:
            named = (
                () if refusal.refuses_all else sorted(refusal.mentioned.intersection(references) - self._known.keys())
            )
            for reference in named[: max(0, LOOKED_UP - len(self._known))]:
                try:
                    there = await self._upstream.exists(reference, self._requester)
                except RequestRefused:
                    there = True
                self._known[reference] = None if there else refusal.as_refused()

    def refusal(self, references: Iterable[str]) -> Refused | None:
        """Return the refusal of an entry with these references; None if the server may have all of them."""
        return next((refusal for reference in references if (refusal := self._known.get(reference))), None)
