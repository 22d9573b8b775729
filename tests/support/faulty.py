"""A FHIR server that lacks abilities, or fails, made of a real one behind it: what it says that it can't do it does not do."""

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
from support.fake_upstream import _break as broken

from cgm_proxy.core.codec.json_body import decode, encode

Json = dict[str, Any]

#: What may befall a write: it is refused, or its connection breaks, and the store never sees it, has done it by then, or does it
#: only after a while; or some entries of a batch are answered 503.
TROUBLES = ("busy", "unavailable", "conflict", "cut before", "cut after", "failed after", "cut while", "half", "partly")

#: How long after the cut the store is given what was cut off `cut while` it was under way (seconds).
LATE = 0.3

_FRAMING = frozenset(
    {"content-length", "transfer-encoding", "connection", "date", "server", "host", "content-encoding"}
)


@dataclass
class Faulty:
    """What the server can do, and how it says what it can't."""

    transactions: bool = True
    batches: bool = True
    conditional: bool = True
    update: bool = False
    entries: int = 1000
    """In one Bundle, at most."""
    silent_about: bool = False
    """Whether it leaves out of its CapabilityStatement what it can't do, instead of denying it."""
    refusal: int = 400
    """How it answers to a kind of Bundle that it does not take."""
    asked: Counter[str] = field(default_factory=Counter)
    """Which writes came, and what befell them."""

    def behave(
        self,
        *,
        troubles: tuple[str, ...] = (),
        often: float = 0.0,
        seed: int = 0,
        poisoned: tuple[str, ...] = (),
    ) -> None:
        """Let these befall what is written from now on: `often` is the part of all writes, the same ones for a seed.

        An entry that holds a text of `poisoned` is refused with 422.
        """
        self.troubles, self.often, self.poisoned = troubles, often, poisoned
        self._random = random.Random(seed)
        self.asked.clear()

    def application(self, store: str) -> web.Application:
        """Give the server before `store`, a base URL."""
        self._store = store
        self.behave()
        app = web.Application(client_max_size=2**28)
        app.cleanup_ctx.append(self._session_of)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _session_of(self, _app: web.Application) -> AsyncIterator[None]:
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
        self.asked[bundle or f"{request.method} by itself"] += 1
        trouble = self._random.choice(self.troubles) if self._random.random() < self.often else ""
        if trouble:
            self.asked[trouble] += 1
        entries = document["entry"] if bundle else [{"resource": document, "request": {"method": request.method}}]
        if refused := self._refused(bundle, entries):
            return refused
        guilty = [number for number, entry in enumerate(entries) if self._guilty(entry)]
        if guilty and bundle != "batch":
            return _outcome(422, "invalid", f"Bundle.entry[{guilty[0]}] is poisoned" if bundle else "poisoned")
        if bundle == "batch":
            late = range(0, len(entries), 3) if trouble == "partly" else ()
            return await self._befall(trouble, request, document, dict.fromkeys(late, 503) | dict.fromkeys(guilty, 422))
        return await self._befall(trouble, request, document, {})

    def _refused(self, bundle: str, entries: list[Json]) -> web.Response | None:
        if (bundle == "transaction" and not self.transactions) or (bundle == "batch" and not self.batches):
            return _outcome(self.refusal, "not-supported", f"no {bundle} here")
        if len(entries) > self.entries:
            return _outcome(413, "too-costly", f"{len(entries)} entries are more than {self.entries}")
        if not self.update and any(entry["request"]["method"] == "PUT" for entry in entries):
            return _outcome(405, "not-supported", "no update here")
        return None

    def _guilty(self, entry: Json) -> bool:
        text = encode(entry["resource"]).decode()
        return any(poison in text for poison in self.poisoned)

    async def _befall(
        self, trouble: str, request: web.Request, document: Json, held_out: dict[int, int]
    ) -> web.StreamResponse:
        """Do to a write what it is to suffer; entries of a batch that are `held_out` get a status instead."""
        if trouble == "busy":
            return _outcome(429, "throttled", "later", {"Retry-After": "0"})
        if trouble == "unavailable":
            return _outcome(503, "transient", "later", {"Retry-After": "0"})
        if trouble == "conflict":
            return _outcome(409, "conflict", "you lost a race")
        if trouble == "cut before":
            broken(request)
            return web.Response()
        if trouble == "cut while":
            broken(request)
            self._late = asyncio.create_task(self._pass_late(request, document, held_out))
            return web.Response()
        given = await self._do(request, document, held_out)
        if trouble == "failed after":
            return web.Response(status=502, text="<html>Bad Gateway")
        if trouble == "cut after":
            broken(request)
        elif trouble == "half":
            return web.Response(status=200, body=(given.body or b"")[: len(given.body or b"") // 2])
        return given

    async def _pass_late(self, request: web.Request, document: Json, held_out: dict[int, int]) -> None:
        await asyncio.sleep(LATE)
        await self._do(request, document, held_out)

    async def _do(self, request: web.Request, document: Json, held_out: dict[int, int]) -> web.Response:
        """Let the store do it, without what it can't do."""
        entries = document.get("entry", [])
        for entry in entries if not self.conditional else ():
            entry["request"].pop("ifNoneExist", None)
        kept = [entry for number, entry in enumerate(entries) if number not in held_out]
        given = await self._pass_on(request, encode(document | {"entry": kept} if entries else document))
        if not held_out:
            return given
        answered = iter(decode(given.body)["entry"] if kept else ())
        merged = [
            {"response": {"status": str(held_out[n])}} if n in held_out else next(answered) for n in range(len(entries))
        ]
        return web.json_response(body=encode({"resourceType": "Bundle", "type": "batch-response", "entry": merged}))

    async def _statement(self, request: web.Request) -> web.Response:
        given = await self._pass_on(request, b"")
        statement = decode(given.body)
        rest = statement["rest"][0]
        codes = [("transaction", self.transactions), ("batch", self.batches)]
        rest["interaction"] = [{"code": code} for code, able in codes if able]
        statement["software"] = {"name": "Faulty"}
        for resource in rest["resource"]:
            for ability, able in (("conditionalCreate", self.conditional), ("updateCreate", self.update)):
                resource.pop(ability, None)
                if able or not self.silent_about:
                    resource[ability] = able
        return web.json_response(body=encode(statement))

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        url = self._store.removesuffix("/fhir") + request.raw_path
        kept = {name: value for name, value in request.headers.items() if name.lower() not in _FRAMING}
        if not self.conditional:
            kept.pop("If-None-Exist", None)
        async with self._session.request(request.method, url, data=body or None, headers=kept) as answer:
            headers = CIMultiDict({k: v for k, v in answer.headers.items() if k.lower() not in _FRAMING})
            given, status = await answer.read(), answer.status
        return web.Response(status=status, headers=headers, body=given)


def _outcome(status: int, code: str, text: str, headers: dict[str, str] | None = None) -> web.Response:
    issue = {"severity": "error", "code": code, "diagnostics": text}
    return web.json_response({"resourceType": "OperationOutcome", "issue": [issue]}, status=status, headers=headers)


@contextmanager
def faulty(store: str, server: Faulty) -> Iterator[str]:
    """Serve it before `store`, and give its base URL."""
    with servers.served(server.application(store)) as root:
        yield f"{root}/fhir"
