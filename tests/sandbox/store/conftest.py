from typing import Any

import pytest
from support.dialogue import Reply, Talk, encode

from cgm_proxy.sandbox.store.app import make_app


@pytest.fixture
async def fhir(aiohttp_client) -> Talk:
    """Talk to a new store in memory: `await fhir("POST", "/Patient", {...}, Prefer="return=minimal")`."""
    client = await aiohttp_client(make_app())

    async def talk(method: str, path: str, body: Any = None, **headers: str) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body = encode(body)
        if body is not None:
            sent.setdefault("Content-Type", "application/fhir+json")
        async with client.request(method, "/fhir" + path, data=body, headers=sent, allow_redirects=False) as reply:
            return Reply(reply.status, reply.headers, await reply.text())

    return talk
