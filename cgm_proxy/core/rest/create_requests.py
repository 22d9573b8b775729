"""Write what goes upstream: a Bundle of entries, or the request of a single entry."""

from collections.abc import Mapping, Sequence

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.strategy import Strategy, logical_id
from cgm_proxy.core.submission.identity import stamp
from cgm_proxy.core.submission.plan import AcceptedEntry

#: The header fields of a single request that stand for elements of `Bundle.entry.request`
#: (https://hl7.org/fhir/R4/http.html#ccreate).
HEADER_FIELDS = {"ifNoneExist": "If-None-Exist", "ifNoneMatch": "If-None-Match"}


def bundle(entries: Sequence[AcceptedEntry], locations: Mapping[str, str], strategy: Strategy) -> bytes:
    """Serialise the transaction or batch that creates these entries, each by its identity.

    `locations` replace references: to entries that are stored by now, and as in `Plan.aliases`.
    """
    written = [
        b'{"fullUrl":%b,"resource":%b,"request":%b}'
        % (
            encode(each.url),
            _resource(each, locations, strategy),
            encode(strategy.request(each.entry.type, each.identity)),
        )
        for each in entries
    ]
    bundle_type = strategy.sending.name.encode()
    return b'{"resourceType":"Bundle","type":"%b","entry":[%b]}' % (bundle_type, b",".join(written))


def single(
    entry: AcceptedEntry, locations: Mapping[str, str], strategy: Strategy
) -> tuple[JsonObject, dict[str, str], bytes]:
    """Return an entry's own request: `Bundle.entry.request`, the header fields of its condition, and the resource."""
    request = strategy.request(entry.entry.type, entry.identity)
    fields = {HEADER_FIELDS[key]: value for key, value in request.items() if key in HEADER_FIELDS}
    return request, fields, _resource(entry, locations, strategy)


def _resource(entry: AcceptedEntry, locations: Mapping[str, str], strategy: Strategy) -> bytes:
    stamped = stamp(entry.entry, entry.identity, locations)
    return encode({**decode(stamped), "id": logical_id(entry.identity)}) if strategy.creating.by_id else stamped
