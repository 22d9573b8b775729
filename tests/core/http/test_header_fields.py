"""Header fields that pass through, and those that are written anew."""

import pytest

from cgm_proxy.core.http.base_urls import BaseUrl, BaseUrls
from cgm_proxy.core.http.header_fields import (
    HOP_BY_HOP,
    METHOD_OVERRIDES,
    client_address,
    encode,
    end_to_end,
    public_address,
    submitter_fields,
)

CONNECTIONS = [
    ([(b"Connection", b"close")], []),
    ([(b"Connection", b"X-Mine"), (b"X-Mine", b"1"), (b"x-mine", b"2"), (b"X-Other", b"3")], [(b"X-Other", b"3")]),
    ([(b"connection", b"a , B"), (b"A", b"1"), (b"b", b"2"), (b"C", b"3")], [(b"C", b"3")]),
    ([(b"A", b"1"), (b"Connection", b"A"), (b"Connection", b"B"), (b"B", b"2")], []),
    ([(b"Connection", b"Content-Length, authorization, Host"), (b"Content-Length", b"1")], [(b"Content-Length", b"1")]),
    ([(b"TE", b"trailers"), (b"Trailer", b"X"), (b"Upgrade", b"h2c"), (b"Keep-Alive", b"1")], []),
    ([(b"Proxy-Authorization", b"x"), (b"Proxy-Connection", b"x"), (b"Proxy-Authenticate", b"x")], []),
    (
        [(b"Transfer-Encoding", b"chunked"), (b"Set-Cookie", b"a"), (b"set-cookie", b"b")],
        [(b"Set-Cookie", b"a"), (b"set-cookie", b"b")],
    ),
]


@pytest.mark.parametrize(("fields", "kept"), CONNECTIONS)
def test_hop_by_hop_fields_are_left_out(fields, kept):
    assert end_to_end(fields, HOP_BY_HOP) == kept


OF_ONE_REQUEST = [
    *METHOD_OVERRIDES,
    *["Host", "Accept", "Prefer", "Range", "X-Request-ID", "Content-Type", "If-None-Exist", "Forwarded"],
]


@pytest.mark.parametrize("name", OF_ONE_REQUEST)
def test_fields_about_one_request_are_not_carried_by_the_requests_made_from_it(name):
    own = [(b"Authorization", b"Bearer x"), (b"Cookie", b"a=b"), (b"X-Mine", b"1")]
    assert submitter_fields([*own, (name.encode(), b"x"), (name.upper().encode(), b"x")]) == own


def test_fields_are_encoded_as_they_are():
    assert encode([(b"A", b""), (b"b", b"J\xf6rg\t \xff")]) == b"A: \r\nb: J\xf6rg\t \xff\r\n"


@pytest.mark.parametrize("character", [bytes([code]) for code in {*range(32), 127} - {9}])
def test_a_control_character_is_never_encoded(character):
    for field in [(b"A", b"b" + character + b"c"), (b"A" + character, b"c")]:
        with pytest.raises(ValueError, match="control character"):
            encode([(b"X", b"y"), field])


PEERS = [
    ("10.0.0.1", [], b'for=10.0.0.1;host="h:1";proto=https', b"10.0.0.1"),
    ("::1", [], b'for="[::1]";host="h:1";proto=https', b"::1"),
    (None, [], b'for=unknown;host="h:1";proto=https', b"unknown"),
    (
        "10.0.0.1",
        [(b"X-Forwarded-For", b"1.1.1.1"), (b"Forwarded", b"for=9.9.9.9"), (b"x-forwarded-FOR", b"2.2.2.2, 3.3.3.3")],
        b'for=10.0.0.1;host="h:1";proto=https',
        b"1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1",
    ),
]


@pytest.mark.parametrize(("peer", "received", "forwarded", "chain"), PEERS)
def test_the_peer_is_named_after_the_addresses_that_it_claims(peer, received, forwarded, chain):
    fields = client_address(peer, BaseUrl("https://h:1/fhir"), received)
    assert fields == [(b"Forwarded", forwarded), (b"X-Forwarded-For", chain)]


@pytest.mark.parametrize(
    ("public", "upstream", "host", "scheme", "port", "prefix"),
    [
        ("https://Fhir.example:8443/r4", "http://up/hapi", b"fhir.example:8443", b"https", b"8443", [b"/r4"]),
        ("https://fhir.example/fhir", "http://up/fhir", b"fhir.example", b"https", b"443", []),
        ("http://[::1]", "http://up/fhir", b"[::1]", b"http", b"80", [b""]),
    ],
)
def test_the_public_address_is_that_of_the_settings(public, upstream, host, scheme, port, prefix):
    assert public_address(BaseUrls.of(public, upstream)) == [
        (b"X-Forwarded-Host", host),
        (b"X-Forwarded-Proto", scheme),
        (b"X-Forwarded-Port", port),
        *((b"X-Forwarded-Prefix", value) for value in prefix),
    ]
