"""What a request holds is free when it has ended, however it ends: the resident size of a real proxy's process.

Python's collector of reference cycles seldom runs in the proxy, so that a cycle that holds a body stays for hours.
"""

import gzip
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bench.memory import standin
from support import servers

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.sandbox.simulation.submissions import submission

#: What the process may grow by, while it handles several times as many bytes: the allocator's reserve.
GROWTH = 50 * 2**20
#: Bytes of the bodies that each test sends in all.
SENT = 160 * 2**20

BODY = 2**20
READINGS = submission("argo", "Patient/p1", readings=450, summary=False, pdf=False, device=False)
UNFINISHED = b'{"resourceType":"Bundle","type":"batch","id":"' + b"a" * BODY
XML = b'<Bundle xmlns="http://hl7.org/fhir"><id value="%b"/>%b</Bundle>'


class Proxy:
    """A running proxy, and a client of plain sockets that can break off anywhere."""

    def __init__(self, server: servers.Running) -> None:
        self.pid = server.process.pid
        self.path = urlsplit(server.url).path
        self._address = urlsplit(server.url).hostname, urlsplit(server.url).port

    def connect(self, data: bytes) -> socket.socket:
        """Open a connection and send something on it."""
        client = socket.create_connection(self._address, timeout=30)
        client.sendall(data)
        return client

    def post(self, body: bytes, *fields: str, path: str = "") -> socket.socket:
        """Begin a POST; the body may be shorter than the Content-Length in `fields`."""
        framing = [] if any(field.startswith(("Content-Length", "Transfer")) for field in fields) else [len(body)]
        lines = [f"POST {self.path}{path} HTTP/1.1", "Host: x", "Connection: close", *fields]
        lines += [f"Content-Length: {length}" for length in framing]
        return self.connect("\r\n".join([*lines, "", ""]).encode() + body)

    def hang_up(self, client: socket.socket) -> None:
        """Close a connection when the proxy has read what was sent, and waits for more."""
        time.sleep(0.02)
        client.close()

    def answer(self, client: socket.socket) -> bytes:
        """Return the whole answer, and close the connection."""
        with client:
            return b"".join(iter(lambda: client.recv(2**20), b""))

    def resident(self) -> int:
        """Return the resident size of the process in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak(self) -> int:
        """Return the largest resident size of the process so far in bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("memory")
    with servers.running(standin(folder)) as upstream, servers.proxy(upstream.url, folder) as server:
        yield Proxy(server)


def report(kind: str = "batch") -> bytes:
    """Return a submission of one report with a long text and a wrong status."""
    bundle = submission("argo", "Patient/p1", readings=1, summary=False, pdf=True, device=False) | {"type": kind}
    bundle["entry"] = [each for each in bundle["entry"] if each["resource"]["resourceType"] == "DiagnosticReport"]
    bundle["entry"][0]["resource"] |= {"status": "wrong", "conclusion": "a" * BODY, "result": []}
    return encode(bundle)


def refused(proxy: Proxy, body: bytes, status: bytes, *fields: str) -> int:
    """Send a body that is answered with a status, or whose entries are; return the number of its bytes."""
    answer = proxy.answer(proxy.post(body, "Content-Type: application/fhir+json", *fields))
    assert status in answer, answer[:1000]
    return len(body)


def hang_up_in_the_body(proxy: Proxy) -> int:
    proxy.hang_up(proxy.post(UNFINISHED, f"Content-Length: {2 * BODY}"))
    return BODY


def hang_up_in_a_chunk(proxy: Proxy) -> int:
    proxy.hang_up(proxy.post(b"%x\r\n%b" % (2 * BODY, UNFINISHED), "Transfer-Encoding: chunked"))
    return BODY


def hang_up_in_a_streamed_body(proxy: Proxy) -> int:
    proxy.hang_up(proxy.post(UNFINISHED, f"Content-Length: {2 * BODY}", path="/Binary"))
    return BODY


def hang_up_before_the_answer(proxy: Proxy) -> int:
    body = encode(READINGS)
    proxy.post(body, "Content-Type: application/fhir+json").close()
    return len(body)


def an_atomic_submission_is_refused(proxy: Proxy) -> int:
    return refused(proxy, report("transaction"), b"HTTP/1.1 422 ")


def a_report_is_refused(proxy: Proxy) -> int:
    return refused(proxy, report(), b'"422 ')


def the_body_is_malformed(proxy: Proxy) -> int:
    return refused(proxy, UNFINISHED, b"HTTP/1.1 400 ")


def xml_is_refused(proxy: Proxy) -> int:
    return refused(proxy, XML % (b"a" * BODY, b'<id xmlns="urn:x"/>'), b"HTTP/1.1 400 ")


def xml_passes_through(proxy: Proxy) -> int:
    return refused(proxy, XML % (b"a" * BODY, b'<type value="batch"/>'), b"HTTP/1.1 200 ")


def the_compressed_body_is_malformed(proxy: Proxy) -> int:
    return BODY * (refused(proxy, gzip.compress(UNFINISHED, 1), b"HTTP/1.1 400 ", "Content-Encoding: gzip") > 0)


WAYS: tuple[Callable[[Proxy], int], ...] = (
    hang_up_in_the_body,
    hang_up_in_a_chunk,
    hang_up_in_a_streamed_body,
    hang_up_before_the_answer,
    an_atomic_submission_is_refused,
    a_report_is_refused,
    the_body_is_malformed,
    xml_is_refused,
    xml_passes_through,
    the_compressed_body_is_malformed,
)


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
def test_what_a_request_held_is_free_when_it_ends(proxy: Proxy, end: Callable[[Proxy], int]) -> None:
    for _ in range(10):
        end(proxy)
    before = proxy.resident()
    sent = 0
    while sent < SENT:
        sent += end(proxy)
    time.sleep(0.5)  # what was sent last may still be worked on
    deadline = time.monotonic() + 10
    while (grown := proxy.resident() - before) > GROWTH and time.monotonic() < deadline:
        time.sleep(0.1)
    assert grown <= GROWTH


@pytest.mark.parametrize(("entries", "faults"), [(1, 9_000), (300, 1_100)])
def test_issues_are_counted_and_not_listed_when_there_are_many(proxy: Proxy, entries: int, faults: int) -> None:
    one = READINGS["entry"][0]
    wrong = {**one, "resource": one["resource"] | {"note": [{}] * faults}}
    body = encode(READINGS | {"entry": [wrong | {"fullUrl": f"urn:uuid:{number}"} for number in range(entries)]})
    answer = proxy.answer(proxy.post(body, "Content-Type: application/fhir+json"))
    assert answer.count(b'"422 ') == entries
    assert b"there are more issues than the 1,000 that are listed" in answer
    assert len(answer) < 400 * (50_000 + entries)


@pytest.mark.parametrize(
    ("head", "element", "tail"),
    [
        (b'{"resourceType":"Bundle","type":"batch","x":[', b"[],", b"[]]}"),
        (b'{"resourceType":"Bundle","type":"batch","entry":[', b"0,", b"0]}"),
        (b'<Bundle xmlns="http://hl7.org/fhir">', b"<a/>", b"</Bundle>"),
    ],
    ids=["lists", "entries", "xml"],
)
def test_a_small_body_with_millions_of_elements_is_refused_before_it_is_parsed(
    proxy: Proxy, head: bytes, element: bytes, tail: bytes
) -> None:
    before = proxy.peak()
    body = gzip.compress(head + element * (60 * 2**20 // len(element)) + tail, 6)
    answer = proxy.answer(proxy.post(body, "Content-Encoding: gzip"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too-many-elements" in answer
    assert proxy.peak() - before < 200 * 2**20
