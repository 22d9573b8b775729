"""A FHIR server that lacks abilities or fails, in front of a real one: what it declares not to support it does not do."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from support import servers
from support.fake_upstream import reset_connection

from cgm_proxy.core.codec.json_body import decode, encode

Json = dict[str, Any]

#: Faults that a write may meet. It is refused; or its connection breaks before, after or while the store carries it out; or
#: the response is an error or cut in half although the store has carried it out; or a batch answers 503 for some entries.
TROUBLES = (
    "busy",
    "unavailable",
    "conflict",
    "cut before",
    "cut after",
    "failed after",
    "cut during",
    "half",
    "partly",
)

#: Time between the cut and the arrival of the request at the store, in a write that is "cut during" (seconds).
DELAY = 0.3

_FRAMING = frozenset(
    {"content-length", "transfer-encoding", "connection", "date", "server", "host", "content-encoding"}
)


@dataclass
class Faulty:
    """The server: what it supports, and how it refuses what it does not support."""

    transactions: bool = True
    batches: bool = True
    conditional: bool = True
    """Whether it supports conditional create; without it, it ignores the conditions."""
    update: bool = False
    """Whether it supports update as create."""
    entries: int = 1000
    """Largest number of entries in a Bundle."""
    undeclared: bool = False
    """Whether its CapabilityStatement leaves out what it does not support, instead of denying it."""
    refusal_status: int = 400
    """Status of its response to a type of Bundle that it does not support."""
    counts: Counter[str] = field(default_factory=Counter)
    """Numbers of writes by their kind, and of the faults that they met."""

    def behave(
        self,
        *,
        troubles: tuple[str, ...] = (),
        probability: float = 0.0,
        seed: int = 0,
        poisoned: tuple[str, ...] = (),
    ) -> None:
        """Set the faults that writes meet from now on, with this probability; a seed always selects the same writes.

        An entry that contains one of the `poisoned` texts is refused with 422.
        """
        self.troubles, self.probability, self.poisoned = troubles, probability, poisoned
        self._random = random.Random(seed)
        self.counts.clear()

    def application(self, store: str) -> web.Application:
        """Return the server in front of the store with this base URL."""
        self._store = store
        self.behave()
        app = web.Application(client_max_size=2**28)
        app.cleanup_ctx.append(self._open_session)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _open_session(self, _app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as self._session:
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, body = request.path.removeprefix("/fhir").strip("/"), await request.read()
        if path == "metadata":
            return await self._statement(request)
        if request.method == "GET" or path.endswith("_search"):
            return await self._pass_on(request, body)
        return await self._write(request, path, body)

    async def _write(self, request: web.Request, path: str, body: bytes) -> web.StreamResponse:
        document = decode(body)
        bundle = str(document.get("type")) if not path else ""
        self.counts[bundle or f"single {request.method}"] += 1
        trouble = self._random.choice(self.troubles) if self._random.random() < self.probability else ""
        if trouble:
            self.counts[trouble] += 1
        entries = document["entry"] if bundle else [{"resource": document, "request": {"method": request.method}}]
        if refusal := self._refusal(bundle, entries):
            return refusal
        poisoned = [number for number, entry in enumerate(entries) if self._is_poisoned(entry)]
        if poisoned and bundle != "batch":
            return _outcome(422, "invalid", f"Bundle.entry[{poisoned[0]}] is poisoned" if bundle else "poisoned")
        statuses = {}
        if bundle == "batch":
            unavailable = range(0, len(entries), 3) if trouble == "partly" else ()
            statuses = dict.fromkeys(unavailable, 503) | dict.fromkeys(poisoned, 422)
        return await self._carry_out(trouble, request, document, statuses)

    def _refusal(self, bundle: str, entries: list[Json]) -> web.Response | None:
        if (bundle == "transaction" and not self.transactions) or (bundle == "batch" and not self.batches):
            return _outcome(self.refusal_status, "not-supported", f"no {bundle} here")
        if len(entries) > self.entries:
            return _outcome(413, "too-costly", f"{len(entries)} entries are more than {self.entries}")
        if not self.update and any(entry["request"]["method"] == "PUT" for entry in entries):
            return _outcome(405, "not-supported", "no update here")
        return None

    def _is_poisoned(self, entry: Json) -> bool:
        text = encode(entry["resource"]).decode()
        return any(poison in text for poison in self.poisoned)

    async def _carry_out(
        self, trouble: str, request: web.Request, document: Json, statuses: dict[int, int]
    ) -> web.StreamResponse:
        """Carry out a write with the fault that it meets; the store never gets the entries of a batch in `statuses`."""
        if trouble == "busy":
            return _outcome(429, "throttled", "later", {"Retry-After": "0"})
        if trouble == "unavailable":
            return _outcome(503, "transient", "later", {"Retry-After": "0"})
        if trouble == "conflict":
            return _outcome(409, "conflict", "you lost a race")
        if trouble == "cut before":
            reset_connection(request)
            return web.Response()
        if trouble == "cut during":
            reset_connection(request)
            self._late = asyncio.create_task(self._store_late(request, document, statuses))
            return web.Response()
        response = await self._store_entries(request, document, statuses)
        if trouble == "failed after":
            return web.Response(status=502, text="<html>Bad Gateway")
        if trouble == "cut after":
            reset_connection(request)
        elif trouble == "half":
            body = response.body or b""
            return web.Response(status=200, body=body[: len(body) // 2])
        return response

    async def _store_late(self, request: web.Request, document: Json, statuses: dict[int, int]) -> None:
        await asyncio.sleep(DELAY)
        await self._store_entries(request, document, statuses)

    async def _store_entries(self, request: web.Request, document: Json, statuses: dict[int, int]) -> web.Response:
        """Pass a write on to the store, without what the server does not support and without the entries in `statuses`."""
        entries = document.get("entry", [])
        for entry in entries if not self.conditional else ():
            entry["request"].pop("ifNoneExist", None)
        passed_on = [entry for number, entry in enumerate(entries) if number not in statuses]
        response = await self._pass_on(request, encode(document | {"entry": passed_on} if entries else document))
        if not statuses:
            return response
        stored = iter(decode(response.body)["entry"] if passed_on else ())
        merged = [
            {"response": {"status": str(statuses[n])}} if n in statuses else next(stored) for n in range(len(entries))
        ]
        return web.json_response(body=encode({"resourceType": "Bundle", "type": "batch-response", "entry": merged}))

    async def _statement(self, request: web.Request) -> web.Response:
        response = await self._pass_on(request, b"")
        statement = decode(response.body)
        rest = statement["rest"][0]
        codes = [("transaction", self.transactions), ("batch", self.batches)]
        rest["interaction"] = [{"code": code} for code, supported in codes if supported]
        statement["software"] = {"name": "Faulty"}
        for resource in rest["resource"]:
            for ability, supported in (("conditionalCreate", self.conditional), ("updateCreate", self.update)):
                resource.pop(ability, None)
                if supported or not self.undeclared:
                    resource[ability] = supported
        return web.json_response(body=encode(statement))

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        url = self._store.removesuffix("/fhir") + request.raw_path
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _FRAMING}
        if not self.conditional:
            headers.pop("If-None-Exist", None)
        async with self._session.request(request.method, url, data=body or None, headers=headers) as response:
            fields = CIMultiDict({k: v for k, v in response.headers.items() if k.lower() not in _FRAMING})
            return web.Response(status=response.status, headers=fields, body=await response.read())


def _outcome(status: int, code: str, text: str, headers: dict[str, str] | None = None) -> web.Response:
    issue = {"severity": "error", "code": code, "diagnostics": text}
    return web.json_response({"resourceType": "OperationOutcome", "issue": [issue]}, status=status, headers=headers)


@contextmanager
def faulty(store: str, server: Faulty) -> Iterator[str]:
    """Serve it in front of `store`; yield its base URL."""
    with servers.served(server.application(store)) as root:
        yield f"{root}/fhir"
