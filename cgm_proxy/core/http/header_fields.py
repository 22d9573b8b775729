"""Header fields as they go through: raw pairs of bytes in their order, without those meant for one connection only.

Names and values stay the bytes that were received: a value in Latin-1, a field sent twice and the order of fields
reach the other side as they came. After RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1) and RFC 7239 (Forwarded).
"""

from collections.abc import Collection, Iterable

from cgm_proxy.core.http.base_urls import BaseUrl

Fields = Iterable[tuple[bytes, bytes]]

#: Fields for one connection only (RFC 9110, 7.6.1, 11.7), and the framing, which each side of a relay decides anew.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

#: What a client may claim about itself and the way it came; the relay says it anew from the public base and the peer.
CLAIMED = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-original-url",
        b"x-rewrite-url",
    }
)

#: Never dropped because `Connection` names them: without them the message would mean something else.
_NEEDED = frozenset({b"content-length", b"content-type", b"content-encoding", b"authorization", b"host"})
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close", b""})
#: What may stand in a field; written out it holds one CR and one LF more.
_ALLOWED = bytes({*range(256)} - {*range(0x20), 0x7F} | {0x09})


def end_to_end(fields: Fields, dropped: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    """List the fields whose lower-case names are neither in `dropped` nor named by a `Connection` field."""
    kept: list[tuple[bytes, bytes]] = []
    named: set[bytes] = set()
    for field in fields:
        name = field[0].lower()
        if name not in dropped:
            kept.append(field)
        elif name == b"connection" and (value := field[1].lower()) not in _PLAIN_CONNECTION:
            named.update(token.strip() for token in value.split(b","))
    named -= _NEEDED
    return [field for field in kept if field[0].lower() not in named] if named else kept


def lines(fields: Collection[tuple[bytes, bytes]]) -> bytes:
    """Write fields as lines of a message's head.

    Raises `ValueError` if a name or a value holds a control character (RFC 9110, 5.5): it could begin another field.
    """
    written = b"".join([b"%b: %b\r\n" % field for field in fields])
    if len(written.translate(None, _ALLOWED)) != 2 * len(fields):
        raise ValueError("a control character in a header field")
    return written


def forwarded(peer: str, public: BaseUrl, claimed: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Say who asks, and by what public address, in both spellings that servers read (RFC 7239 and its forerunner).

    `claimed` are the values of the client's own X-Forwarded-For, which stay before the peer: only the last address is
    vouched for. Scheme and authority are the public base's, never the request's.
    """
    node = f'"[{peer}]"' if ":" in peer else peer
    return [
        (b"Forwarded", f'for={node};host="{public.authority}";proto={public.scheme}'.encode()),
        (b"X-Forwarded-For", b", ".join((*claimed, peer.encode()))),
    ]
