"""Requests that are not submissions get the same response through the proxy as from the FHIR server itself."""

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from support import servers
from support.untouched import Request, requests, stored

pytestmark = pytest.mark.hapi

#: Fields that belong to one connection or to one moment.
OWN = {"date", "connection", "keep-alive", "transfer-encoding", "content-length"}

#: What differs between two equal requests, because it is the time or an id that the server chooses.
VARYING = [
    (rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)", b"TIME"),
    (rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", b"TIME"),
    (rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", b"UUID"),
    (rb'("source" ?: ?"|<source value=")#\w+"', rb'\1#REQUEST"'),
    (rb'headerValue">[A-Za-z0-9]{16}<', b'headerValue">REQUEST<'),
    (rb"(Took|generated in|approximately) \d+ms", rb"\1 SOME ms"),
    (rb"\A[A-Za-z0-9]{16}\Z", b"REQUEST"),
    (rb"(Patient|Bundle)/\d+", rb"\1/NUMBER"),
    (rb'("id" ?: ?"|<id value=")\d+"', rb'\1NUMBER"'),
]


class Response(NamedTuple):
    """A response without what differs between two equal requests."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes


class World:
    """One way to the FHIR server: its base URL, the name of its set of resources, and the last response's body as it came."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.path = urlsplit(base).path
        self.raw = b""
        self._connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=300)

    def close(self) -> None:
        self._connection.close()

    def send(self, request: Request) -> Response:
        """Send a request about this world's resources."""
        connection = self._connection
        connection.putrequest(request.method, self.path + self._named(request.target), skip_accept_encoding=True)
        for name, value in request.fields:
            connection.putheader(name, value)
        body = None if request.body is None else self._named_body(request.body)
        if body is not None:
            connection.putheader(
                *(("Transfer-Encoding", "chunked") if request.chunked else ("Content-Length", str(len(body))))
            )
        pieces = [body[:1000], body[1000:]] if body and request.chunked else body
        connection.endheaders(pieces, encode_chunked=request.chunked)
        response = connection.getresponse()
        self.raw = response.read()
        if response.status in {417, 501}:
            connection.close()  # Tomcat closes it too, without a Connection field
        return self._comparable(response, self.raw)

    def _named(self, text: str) -> str:
        return text.replace("zq~", f"zq{self.name}").replace("ller~", f"ller{self.name}")

    def _named_body(self, body: bytes) -> bytes:
        zipped = body.startswith(b"\x1f\x8b")
        plain = gzip.decompress(body) if zipped else body
        plain = plain.replace(b"zq~", b"zq" + self.name.encode()).replace(b"ller~", b"ller" + self.name.encode())
        return gzip.compress(plain, mtime=0) if zipped else plain

    def _comparable(self, response: http.client.HTTPResponse, body: bytes) -> Response:
        if response.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        fields = [
            (name, self._common(text.encode("latin-1")).decode("latin-1")) for name, text in response.getheaders()
        ]
        kept = [field for field in fields if field[0].lower() not in OWN]
        return Response(response.status, response.reason, kept, self._common(body))

    def _common(self, text: bytes) -> bytes:
        """Replace what varies, then the base URL and the name; in this order, because an id can contain any letters."""
        for pattern, common in VARYING:
            text = re.sub(pattern, common, text)
        text = text.replace(self.base.encode(), b"BASE").replace(f"zq{self.name}".encode(), b"zq~")
        return text.replace(f"ller{self.name}".encode(), b"ller~")


@pytest.fixture(scope="module")
def worlds(hapi: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    """Yield the FHIR server itself and the proxy in front of it, each with its set of resources."""
    with servers.proxy(hapi, tmp_path_factory.mktemp("untouched")) as proxy:
        both = World(hapi, "d"), World(proxy.url, "p")
        for world in both:
            for request in stored():
                assert world.send(request).status in {200, 201}
        yield both
        for world in both:
            world.close()


def test_the_same_requests_get_the_same_responses(worlds):
    direct, through = worlds
    different = []
    for request in requests():
        expected, received = direct.send(request), through.send(request)
        if expected != received:
            shown = f"{request.method} {request.target} {request.fields} {(request.body or b'')[:80]!r}"
            different.append(f"{shown}\n{expected}\n{received}"[:3000])
    assert len(requests()) > 300
    assert different == []


def test_every_page_of_a_search_is_reached_by_its_link(worlds):
    pages = []
    for world in worlds:
        target = "/Observation?subject=Patient/zq~1&_count=5&_sort=date"
        seen = []
        while target:
            page = json.loads(world.send(Request("GET", target)).body)
            seen.append([entry["fullUrl"] for entry in page["entry"]])
            links = {link["relation"]: link["url"] for link in json.loads(world.raw)["link"]}
            assert all(link.startswith(world.base) for link in links.values())
            target = links.get("next", "").removeprefix(world.base)
        pages.append(seen)
    assert pages[0] == pages[1]
    assert [len(page) for page in pages[1]] == [5, 5, 2]
