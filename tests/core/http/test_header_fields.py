"""Fields on their way through."""

import pytest

from cgm_proxy.core.http.base_urls import BaseUrl
from cgm_proxy.core.http.header_fields import HOP_BY_HOP, end_to_end, forwarded, lines

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
def test_what_belongs_to_one_connection_is_left_out(fields, kept):
    assert end_to_end(fields, HOP_BY_HOP) == kept


def test_fields_are_written_as_they_are():
    assert lines([(b"A", b""), (b"b", b"J\xf6rg\t \xff")]) == b"A: \r\nb: J\xf6rg\t \xff\r\n"


@pytest.mark.parametrize("text", [bytes([code]) for code in {*range(32), 127} - {9}])
def test_a_control_character_is_never_written(text):
    for field in [(b"A", b"b" + text + b"c"), (b"A" + text, b"c")]:
        with pytest.raises(ValueError, match="control character"):
            lines([(b"X", b"y"), field])


PEERS = [
    ("10.0.0.1", [], b'for=10.0.0.1;host="h:1";proto=https', b"10.0.0.1"),
    ("::1", [], b'for="[::1]";host="h:1";proto=https', b"::1"),
    (
        "10.0.0.1",
        [b"1.1.1.1", b"2.2.2.2, 3.3.3.3"],
        b'for=10.0.0.1;host="h:1";proto=https',
        b"1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1",
    ),
]


@pytest.mark.parametrize(("peer", "claimed", "said", "chain"), PEERS)
def test_the_peer_and_the_public_address_are_said(peer, claimed, said, chain):
    assert forwarded(peer, BaseUrl("https://h:1/fhir"), claimed) == [(b"Forwarded", said), (b"X-Forwarded-For", chain)]
