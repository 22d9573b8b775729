from typing import Any

import pytest
from support.dialogue import Response, Send, encode

from cgm_proxy.sandbox.store.app import make_app


@pytest.fixture
async def fhir(aiohttp_client) -> Send:
    """Return a function that sends requests to a new store: `await fhir("POST", "/Patient", {...}, Prefer="return=minimal")`."""
    client = await aiohttp_client(make_app())

    async def send(method: str, path: str, body: Any = None, **headers: str) -> Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body = encode(body)
        if body is not None:
            fields.setdefault("Content-Type", "application/fhir+json")
        async with client.request(method, "/fhir" + path, data=body, headers=fields, allow_redirects=False) as response:
            return Response(response.status, response.headers, await response.text())

    return send
