"""What is no submission is answered through the proxy as by the FHIR server itself."""

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from support import servers
from support.untouched import Ask, cases, stored

pytestmark = pytest.mark.hapi

#: Fields that belong to one connection or to one moment.
OWN = {"date", "connection", "keep-alive", "transfer-encoding", "content-length"}

#: What a server makes up for each request: named here, and only here, because the two worlds are asked one after another.
MADE_UP = [
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


class Said(NamedTuple):
    """An answer without what differs from request to request."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes


class World:
    """One way to the FHIR server: its base, the name of its resources there, and the last answer's body as it came."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.path = urlsplit(base).path
        self.raw = b""
        self._connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=300)

    def close(self) -> None:
        self._connection.close()

    def ask(self, ask: Ask) -> Said:
        """Send a request of this world and give what is told of its answer."""
        connection = self._connection
        connection.putrequest(ask.method, self.path + self._mine(ask.target), skip_accept_encoding=True)
        for name, text in ask.fields:
            connection.putheader(name, text)
        body = None if ask.body is None else self._own(ask)
        if body is not None:
            connection.putheader(
                *(("Transfer-Encoding", "chunked") if ask.chunked else ("Content-Length", str(len(body))))
            )
        pieces = [body[:1000], body[1000:]] if body and ask.chunked else body
        connection.endheaders(pieces, encode_chunked=ask.chunked)
        response = connection.getresponse()
        body = response.read()
        self.raw = body
        said = self._said(response, body)
        if said.status in {417, 501}:
            connection.close()  # Tomcat does so as well, and does not say it
        return said

    def _mine(self, text: str) -> str:
        return text.replace("zq~", f"zq{self.name}").replace("ller~", f"ller{self.name}")

    def _own(self, ask: Ask) -> bytes:
        body = ask.body or b""
        zipped = body.startswith(b"\x1f\x8b")
        plain = gzip.decompress(body) if zipped else body
        plain = plain.replace(b"zq~", b"zq" + self.name.encode()).replace(b"ller~", b"ller" + self.name.encode())
        return gzip.compress(plain, mtime=0) if zipped else plain

    def _said(self, response: http.client.HTTPResponse, body: bytes) -> Said:
        if response.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        fields = [
            (name, self._common(text.encode("latin-1")).decode("latin-1")) for name, text in response.getheaders()
        ]
        kept = [field for field in fields if field[0].lower() not in OWN]
        return Said(response.status, response.reason, kept, self._common(body))

    def _common(self, text: bytes) -> bytes:
        """Write the same for both worlds: what is made up is left out first, for it can hold any letters; then names."""
        for pattern, common in MADE_UP:
            text = re.sub(pattern, common, text)
        text = text.replace(self.base.encode(), b"BASE").replace(f"zq{self.name}".encode(), b"zq~")
        return text.replace(f"ller{self.name}".encode(), b"ller~")


@pytest.fixture(scope="module")
def worlds(hapi: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    """Give the FHIR server's own face and the proxy's, each with its world of equal resources."""
    with servers.proxy(hapi, tmp_path_factory.mktemp("untouched")) as proxy:
        both = World(hapi, "d"), World(proxy.url, "p")
        for world in both:
            for ask in stored():
                assert world.ask(ask).status in {200, 201}
        yield both
        for world in both:
            world.close()


def test_the_same_requests_get_the_same_answers(worlds):
    direct, through = worlds
    different = []
    for ask in cases():
        want, got = direct.ask(ask), through.ask(ask)
        if want != got:
            different.append(f"{ask.method} {ask.target} {ask.fields} {(ask.body or b'')[:80]!r}\n{want}\n{got}"[:3000])
    assert len(cases()) > 300
    assert different == []


def test_every_page_of_a_search_is_reached_by_its_link(worlds):
    pages = []
    for world in worlds:
        target = "/Observation?subject=Patient/zq~1&_count=5&_sort=date"
        seen = []
        while target:
            page = json.loads(world.ask(Ask("GET", target)).body)
            seen.append([entry["fullUrl"] for entry in page["entry"]])
            links = {link["relation"]: link["url"] for link in json.loads(world.raw)["link"]}
            assert all(link.startswith(world.base) for link in links.values())
            target = links.get("next", "").removeprefix(world.base)
        pages.append(seen)
    assert pages[0] == pages[1]
    assert [len(page) for page in pages[1]] == [5, 5, 2]
