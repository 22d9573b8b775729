"""Header fields: which ones pass, which are dropped, and which are written anew.

Fields are raw pairs of bytes, in the order in which they were received. In a message that passes through, names and values
stay as they are, so a value in Latin-1, a field that occurs twice and the order of fields reach the other side unchanged.
Only fields for one connection are dropped (RFC 9110, 7.6.1), and the fields that name the client and the public address are
written anew (`public_address`, `client_address`). The requests that the proxy makes from a submission carry fewer of its
fields (`submitter_fields`).
"""

from collections.abc import Collection, Iterable

from cgm_proxy.core.http.base_urls import BaseUrl, BaseUrls

Field = tuple[bytes, bytes]

#: Fields for one connection only (RFC 9110, 7.6.1 and 11.7). Framing is among them: each side of a relay chooses its own.
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

#: Fields by which a client could claim another address or target. None of them passes; the proxy writes its own.
FORWARDING = frozenset(
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

#: Fields with which some servers let a client use another method than the request line's.
METHOD_OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")

#: Fields of a submission that the requests made from it do not carry: they are about this one body or response. A method
#: override would even turn another request, perhaps one with the service token, into something else.
_OF_ONE_REQUEST = (
    HOP_BY_HOP
    | FORWARDING
    | frozenset(name.lower().encode() for name in METHOD_OVERRIDES)
    | frozenset(
        b"host expect digest repr-digest want-digest want-repr-digest accept range prefer accept-encoding cache-control "
        b"pragma x-request-id".split()
    )
)
#: The beginnings of more such names, about content and conditions.
_OF_ONE_REQUEST_PREFIXES = (b"content-", b"if-")

#: Fields by which no server tells users apart, in lower case: languages, traces, and what the proxy writes itself. A field that is
#: not among them may carry someone's identity, such as a client certificate that a load balancer has checked.
ANONYMOUS = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "b3",
        "baggage",
        "cache-control",
        "correlation-id",
        "date",
        "dnt",
        "forwarded",
        "max-forwards",
        "newrelic",
        "origin",
        "pragma",
        "priority",
        "referer",
        "request-id",
        "save-data",
        "sec-ch-ua",
        "sec-ch-ua-mobile",
        "sec-ch-ua-platform",
        "sec-fetch-dest",
        "sec-fetch-mode",
        "sec-fetch-site",
        "sec-fetch-user",
        "sec-gpc",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "uber-trace-id",
        "upgrade-insecure-requests",
        "user-agent",
        "via",
        "x-amzn-trace-id",
        "x-b3-flags",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-spanid",
        "x-b3-traceid",
        "x-client-request-id",
        "x-cloud-trace-context",
        "x-correlation-id",
        "x-datadog-origin",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "x-datadog-tags",
        "x-datadog-trace-id",
        "x-forwarded-for",
        "x-real-ip",
        "x-request-id",
        "x-requested-with",
        "x-request-start",
    }
)

#: Fields that `Connection` can't remove: without them the message would mean something else.
_NEVER_HOP_BY_HOP = frozenset({b"content-length", b"content-type", b"content-encoding", b"authorization", b"host"})
_CONNECTION_OPTIONS = frozenset({b"keep-alive", b"close", b""})
#: The bytes that a name or value may hold; an encoded field has one CR and one LF besides.
_ALLOWED = bytes({*range(256)} - {*range(0x20), 0x7F} | {0x09})


def end_to_end(fields: Iterable[Field], dropped: Collection[bytes]) -> list[Field]:
    """Return the fields whose lower-case names are neither in `dropped` nor named by a `Connection` field.

    `dropped` must contain `HOP_BY_HOP`.
    """
    kept: list[Field] = []
    named: set[bytes] = set()
    for field in fields:
        name = field[0].lower()
        if name not in dropped:
            kept.append(field)
        elif name == b"connection" and (value := field[1].lower()) not in _CONNECTION_OPTIONS:
            named.update(token.strip() for token in value.split(b","))
    named -= _NEVER_HOP_BY_HOP
    return [field for field in kept if field[0].lower() not in named] if named else kept


def submitter_fields(received: Iterable[Field]) -> list[Field]:
    """Return the fields of a submission that the requests made from it carry as well, such as Authorization."""
    kept = end_to_end(received, _OF_ONE_REQUEST)
    return [field for field in kept if not field[0].lower().startswith(_OF_ONE_REQUEST_PREFIXES)]


def encode(fields: Collection[Field]) -> bytes:
    """Return the fields as lines of a message's head.

    Raises `ValueError` if a name or a value holds a control character (RFC 9110, 5.5): it could begin another field.
    """
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    if len(lines.translate(None, _ALLOWED)) != 2 * len(fields):
        raise ValueError("a control character in a header field")
    return lines


def public_address(bases: BaseUrls) -> list[Field]:
    """Return the X-Forwarded-* fields that tell the upstream its public base URL; all requests have the same.

    They come from the settings, never from the request, so a client can't make the upstream link elsewhere.
    """
    public = bases.public
    fields = [
        (b"X-Forwarded-Host", public.authority.encode()),
        (b"X-Forwarded-Proto", public.scheme.encode()),
        (b"X-Forwarded-Port", str(public.port).encode()),
    ]
    if public.path != bases.upstream.path:
        fields.append((b"X-Forwarded-Prefix", public.path.encode()))
    return fields


def client_address(peer: str | None, public: BaseUrl, received: Iterable[Field] = ()) -> list[Field]:
    """Return `Forwarded` (RFC 7239) and `X-Forwarded-For`, which tell the upstream who sent a request.

    The addresses in the `received` request's own X-Forwarded-For stay before the peer's: only the last one is certain.
    """
    peer = peer or "unknown"
    node = f'"[{peer}]"' if ":" in peer else peer
    claimed = [value for name, value in received if name.lower() == b"x-forwarded-for"]
    return [
        (b"Forwarded", f'for={node};host="{public.authority}";proto={public.scheme}'.encode()),
        (b"X-Forwarded-For", b", ".join((*claimed, peer.encode()))),
    ]
