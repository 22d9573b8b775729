"""No way around the check: a submission is inspected however it is written and sent, and a bad reading is never stored.

Each row is a way to post a submission whose only reading has a wrong unit. The proxy may refuse it or the upstream may;
in either case the reading is not stored.
"""

import gzip
import http.client
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from support.client import JSON, XML, Client
from support.r4 import FHIR_XML
from support.servers import Running, proxy

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.sandbox.simulation.submissions import patient, submission


class Sent(NamedTuple):
    """A request as it is sent."""

    target: str
    body: bytes
    headers: dict[str, str]
    method: str = "POST"


Way = Callable[[dict[str, Any]], Sent]


def at(target: str, **headers: str) -> Way:
    """Post it as JSON to this target."""
    return lambda bundle: Sent(target, encode(bundle), {"Content-Type": JSON} | named(headers))


def as_text(change: Callable[[str], str], **headers: str) -> Way:
    """Post its JSON text, changed."""
    return lambda bundle: Sent(
        "/fhir", change(encode(bundle).decode()).encode(), {"Content-Type": JSON} | named(headers)
    )


def encoded(coding: str, compress: Callable[[bytes], bytes]) -> Way:
    return lambda bundle: Sent("/fhir", compress(encode(bundle)), {"Content-Type": JSON, "Content-Encoding": coding})


def operation(target: str) -> Way:
    def sent(bundle: dict[str, Any]) -> Sent:
        plain = {name: value for name, value in bundle.items() if name != "meta"} | {"type": "transaction"}
        return Sent(target, encode(plain), {"Content-Type": JSON})

    return sent


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def other_tags_first(text: str) -> str:
    return text.replace('"tag":[', '"tag":[{"system":"http://x.org","code":"y"},{},', 1)


WAYS: dict[str, Way] = {
    "plain": at("/fhir"),
    "a slash at the end": at("/fhir/"),
    "two slashes": at("//fhir"),
    "slashes at the end": at("/fhir///"),
    "a dot": at("/fhir/."),
    "an encoded dot": at("/fhir/%2e"),
    "up and down": at("/fhir/Patient/../"),
    "up and down, encoded": at("/fhir/Patient/%2e%2e/"),
    "an encoded letter": at("/%66hir"),
    "an encoded slash": at("/fhir%2f"),
    "a path parameter": at("/fhir;a=b"),
    "a path parameter with a dot": at("/fhir/.;a=b/"),
    "a query": at("/fhir?_format=json"),
    "a fragment": at("/fhir#x"),
    "an absolute target": at("http://elsewhere.example/fhir"),
    "a method override": at("/fhir", X_HTTP_Method_Override="PUT", X_Method_Override="GET"),
    "another method that is overridden": lambda bundle: Sent(
        "/fhir", encode(bundle), {"Content-Type": JSON, "X-HTTP-Method-Override": "POST"}, "PUT"
    ),
    "a wrong content type": at("/fhir", Content_Type="text/plain"),
    "a media type of another case": at("/fhir", Content_Type="Application/FHIR+JSON; charset=UTF-8"),
    "no content type": at("/fhir", Content_Type=""),
    "JSON that claims to be XML": at("/fhir", Content_Type=XML),
    "an original url": at("/fhir", X_Original_URL="/fhir/Patient", X_Rewrite_URL="/fhir/Patient"),
    "escapes in the tag": as_text(lambda text: text.replace("cgm-submission-bundle", "\\u0063gm-submission-bundle")),
    "escapes in a name": as_text(lambda text: text.replace('"meta"', '"m\\u0065ta"')),
    "a second, empty meta": as_text(lambda text: text.replace('"type":"batch"', '"type":"batch","meta":{}', 1)),
    "a first, empty meta": as_text(lambda text: text.replace('{"resourceType"', '{"meta":{},"resourceType"', 1)),
    "a second type of resource": as_text(
        lambda text: text.replace('"type":"batch"', '"type":"batch","resourceType":"Basic"', 1)
    ),
    "other tags first": as_text(other_tags_first),
    "white space": as_text(lambda text: " \n\t" + text.replace('":', '" :\t').replace(',"', ' ,\n"')),
    "a byte order mark": as_text(lambda text: "\ufeff" + text),
    "gzip": encoded("gzip", gzip.compress),
    "gzip in capitals": encoded("GZIP", gzip.compress),
    "gzip, with a space": encoded(" gzip ", gzip.compress),
    "gzip twice": encoded("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    "deflate": encoded("deflate", zlib.compress),
    "a coding that is not known": encoded("br", lambda data: data),
    "identity": encoded("identity", lambda data: data),
    "XML": lambda bundle: Sent("/fhir", FHIR_XML.to_xml(bundle), {"Content-Type": XML}),
    "XML that claims to be JSON": lambda bundle: Sent("/fhir", FHIR_XML.to_xml(bundle), {"Content-Type": JSON}),
    "XML with a prefix": lambda bundle: Sent("/fhir", prefixed(FHIR_XML.to_xml(bundle)), {"Content-Type": XML}),
    "UTF-16": lambda bundle: Sent(
        "/fhir", encode(bundle).decode().encode("utf-16"), {"Content-Type": f"{JSON}; charset=utf-16"}
    ),
    "the operation": operation("/fhir/$submit-cgm-bundle"),
    "the operation, encoded": operation("/fhir/%24submit-cgm-bundle"),
    "the operation, encoded twice": operation("/fhir/%2524submit-cgm-bundle"),
    "the operation, two slashes": operation("/fhir//$submit-cgm-bundle/"),
    "the operation, a parameter": operation("/fhir/$submit-cgm-bundle;x?y=z"),
}


def prefixed(data: bytes) -> bytes:
    text = data.decode().replace('xmlns="http://hl7.org/fhir"', 'xmlns:f="http://hl7.org/fhir"')
    return text.replace("</", "<//").replace("<", "<f:").replace("<f://", "</f:").replace("<f:?", "<?").encode()


@pytest.fixture(scope="module")
def running(sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with proxy(sandbox, tmp_path_factory.mktemp("bypasses")) as server:
        yield server


@pytest.fixture
def about(sandbox: str) -> str:
    name = f"p{uuid4().hex[:12]}"
    Client(sandbox).put(f"Patient/{name}", patient(name))
    return f"Patient/{name}"


def bad(about: str) -> dict[str, Any]:
    bundle = submission("argo", about, readings=1, summary=False, pdf=False, device=False)
    bundle["entry"][0]["resource"]["valueQuantity"]["unit"] = "mg/dL"
    return bundle


def send(base: str, sent: Sent, *, chunked: bool = False) -> tuple[int, bytes]:
    """Send a request target as it is; URL libraries would normalise it."""
    with closing(http.client.HTTPConnection(urlsplit(base).netloc, timeout=60)) as connection:
        return _exchange(connection, sent, chunked=chunked)


def _exchange(connection: http.client.HTTPConnection, sent: Sent, *, chunked: bool) -> tuple[int, bytes]:
    connection.putrequest(sent.method, sent.target, skip_host=False, skip_accept_encoding=True)
    for name, value in sent.headers.items():
        connection.putheader(name, value)
    if chunked:
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for start in range(0, len(sent.body), 100):
            piece = sent.body[start : start + 100]
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n")
    else:
        connection.putheader("Content-Length", str(len(sent.body)))
        connection.endheaders(sent.body)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_bad_reading_is_not_stored_however_it_is_sent(
    way: Way, chunked: bool, running: Running, about: str, sandbox: str
) -> None:
    status, data = send(running.url, way(bad(about)), chunked=chunked)
    assert Client(sandbox).total(f"Observation?subject={about}") == 0
    assert status in {200, 400, 404, 405, 413, 415}
    if status == 200:
        assert b"value-unit" in data


def test_the_upstreams_own_path_is_inspected_as_well(sandbox: str, about: str, tmp_path) -> None:
    public = {"listen.public_url": "http://127.0.0.1/public/base"}
    with proxy(sandbox, tmp_path, public) as server:
        origin = server.url.removesuffix("/fhir")
        for target in ("/fhir", "/public/base", "/public/base/", "//public/base", "/public/base/../../fhir"):
            status, data = send(origin, at(target)(bad(about)))
            assert status in {200, 400, 404}
            assert Client(sandbox).total(f"Observation?subject={about}") == 0, target
            assert status != 200 or b"value-unit" in data


def test_a_bundle_without_the_tag_passes_unchanged(running: Running, about: str, sandbox: str) -> None:
    plain = {name: value for name, value in bad(about).items() if name != "meta"}
    status, data = send(running.url, at("/fhir")(plain))
    assert (status, json.loads(data)["type"]) == (200, "batch-response")
    assert Client(sandbox).total(f"Observation?subject={about}") == 1
