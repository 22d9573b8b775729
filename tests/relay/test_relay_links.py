"""Links to the upstream's base become public; an upstream that writes public links itself is left alone."""

import gzip
import json

import pytest
from support.relaying import between, talk

PUBLIC = "https://public.example/r4"
GET = b"GET /r4/Patient/1 HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"


def reply(body: bytes, *fields: bytes, kind: bytes = b"application/fhir+json;charset=UTF-8") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (kind, lines, len(body), body)


def in_pieces(body: bytes, *fields: bytes):
    """Make an upstream that sends its head, and then its body byte by byte in chunks, or with a length."""

    async def script(_message, _reader, writer):
        head, _, _ = reply(body, *fields).partition(b"\r\n\r\n")
        if b"Transfer-Encoding: chunked" in fields:
            head = b"\r\n".join(line for line in head.split(b"\r\n") if b"Length" not in line)
            pieces = [b"%x\r\n%b\r\n" % (len(body[i : i + 50]), body[i : i + 50]) for i in range(0, len(body), 50)]
            pieces.append(b"0\r\n\r\n")
        else:
            pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
        for piece in [head + b"\r\n\r\n", *pieces]:
            writer.write(piece)
            await writer.drain()

    return script


def linking(port: int, base: str = "") -> bytes:
    base = base or f"http://127.0.0.1:{port}/hapi"
    page = {"link": [{"relation": "self", "url": f"{base}?x"}], "entry": [{"fullUrl": f"{base}/Patient/1"}]}
    return json.dumps(page).encode()


def world(*answers):
    return between(*answers, public=PUBLIC, path="/hapi")


async def test_a_location_of_the_upstream_becomes_public():
    async with world(b"") as here:
        base = f"http://127.0.0.1:{here.upstream.port}/hapi".encode()
        links = [b"Location: %b/Patient/1/_history/1" % base, b"content-location: %b" % base]
        here.upstream.answers = [reply(b"{}", *links)]
        answer = await here.ask(GET)
        assert answer.all("Location") == [b"https://public.example/r4/Patient/1/_history/1"]
        assert answer.all("Content-Location") == [b"https://public.example/r4"]


@pytest.mark.parametrize("framing", ["whole", "chunks", "sized pieces"])
async def test_links_in_a_body_become_public_and_uncompressed_bodies_are_asked_for_from_then_on(framing):
    async with world(b"") as here, here.client() as (reader, writer):
        body = linking(here.upstream.port)
        script = {
            "whole": reply(body),
            "chunks": in_pieces(body, b"Transfer-Encoding: chunked"),
            "sized pieces": in_pieces(body),
        }[framing]
        location = b"Location: http://127.0.0.1:%d/hapi" % here.upstream.port
        here.upstream.answers = [reply(b"{}", location), script, script]
        await talk(reader, writer, GET)
        for _ in range(2):
            answer = await talk(reader, writer, GET)
            assert answer.body == linking(0, PUBLIC)
        codings = [seen.all("Accept-Encoding") for seen in here.upstream.seen]
        assert codings == [[b"gzip"], [b"identity"], [b"identity"]]


UNTOUCHED = {
    "public links": {},
    "another type": {"kind": b"application/pdf"},
    "compressed": {"zipped": True},
}


@pytest.mark.parametrize("how", UNTOUCHED.values(), ids=UNTOUCHED)
async def test_a_body_without_links_to_the_upstream_keeps_its_bytes_and_its_length(how):
    async with world(b"") as here:
        body = linking(0, PUBLIC) if not how else linking(here.upstream.port)
        fields = ()
        if how.get("zipped"):
            body, fields = gzip.compress(body), (b"Content-Encoding: gzip",)
        here.upstream.answers = [reply(body, *fields, kind=how.get("kind", b"application/fhir+json"))]
        answer = await here.ask(GET)
        assert answer.body == body
        assert answer.all("Content-Length") == [str(len(body)).encode()]
        await here.ask(GET)
        assert here.upstream.seen[-1].all("Accept-Encoding") == [b"gzip"]


async def test_a_large_body_with_a_length_keeps_it_while_nothing_shows_that_links_need_rewriting():
    body = b'{"x":"' + b"y" * 500_000 + b'"}'
    async with world(in_pieces(body)) as here:
        answer = await here.ask(GET)
        assert answer.body == body
        assert answer.all("Content-Length") == [str(len(body)).encode()]
