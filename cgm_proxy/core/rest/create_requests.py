"""Write what goes upstream: a Bundle of entries, or the request of one."""

from collections.abc import Mapping, Sequence

from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.rest.strategy import Strategy, name
from cgm_proxy.core.submission.identity import stamp
from cgm_proxy.core.submission.plan import Identified

#: What stands in a header field where an entry is sent by itself (https://hl7.org/fhir/R4/http.html#ccreate).
FIELDS = {"ifNoneExist": "If-None-Exist", "ifNoneMatch": "If-None-Match"}


def bundle(ones: Sequence[Identified], locations: Mapping[str, str], strategy: Strategy) -> bytes:
    """Serialise the transaction or batch that creates these entries, each by its identity.

    `locations` replace references, to entries that are stored by now and as in `Plan.aliases`.
    """
    entries = [_entry(one, locations, strategy) for one in ones]
    kind = strategy.sending.name.encode()
    return b'{"resourceType":"Bundle","type":"%b","entry":[%b]}' % (kind, b",".join(entries))


def _entry(one: Identified, locations: Mapping[str, str], strategy: Strategy) -> bytes:
    request = encode(strategy.request(one.entry.type, one.identity))
    return b'{"fullUrl":%b,"resource":%b,"request":%b}' % (
        encode(one.url),
        _resource(one, locations, strategy),
        request,
    )


def single(
    one: Identified, locations: Mapping[str, str], strategy: Strategy
) -> tuple[JsonObject, dict[str, str], bytes]:
    """Give an entry's own request: `Bundle.entry.request`, the header fields that say its condition, and the resource."""
    request = strategy.request(one.entry.type, one.identity)
    fields = {FIELDS[key]: value for key, value in request.items() if key in FIELDS}
    return request, fields, _resource(one, locations, strategy)


def _resource(one: Identified, locations: Mapping[str, str], strategy: Strategy) -> bytes:
    stamped = stamp(one.entry, one.identity, locations)
    return encode({**decode(stamped), "id": name(one.identity)}) if strategy.creating.by_id else stamped
