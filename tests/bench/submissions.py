"""Submissions of new readings, to be posted through the proxy and directly to HAPI."""

import http.client
import time
from collections import Counter
from datetime import timedelta
from itertools import count
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from support.client import Client

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.simulation.readings import START
from cgm_proxy.sandbox.simulation.submissions import patient, standing_orders, submission

HEADERS = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"}

#: Each submission begins 120 days later than the one before, so that no two have the same instants.
_days = count(0, 120)


def new_readings(store: Client, readings: int) -> JsonObject:
    """Return an argo submission of `readings` for a new patient, whose standing orders ask for readings.

    The readings refer only to the patient, as in the guide's example. With a second reference HAPI on H2 reads its whole
    table of resources for each entry of a batch, which would make the proxy look too good.
    """
    name = f"p{uuid4().hex[:12]}"
    reference = f"Patient/{name}"
    responses = [store.put(reference, patient(name))]
    responses += [store.put(f"ServiceRequest/{order['id']}", order) for order in standing_orders("argo", reference)]
    assert all(response.status in {200, 201} for response in responses)
    start = START + timedelta(days=next(_days))
    return submission("argo", reference, readings=readings, start=start, summary=False, pdf=False, device=False)


def conditional(bundle: JsonObject) -> JsonObject:
    """Return a copy whose entries have an identifier and ifNoneExist, as a careful submitter without the proxy would send."""
    return bundle | {"entry": [_conditional(entry) for entry in bundle["entry"]]}


def _conditional(entry: JsonObject) -> JsonObject:
    system, value = "urn:ietf:rfc:3986", f"urn:uuid:{uuid4()}"
    resource = entry["resource"] | {"identifier": [{"system": system, "value": value}]}
    return entry | {"resource": resource, "request": entry["request"] | {"ifNoneExist": f"identifier={system}|{value}"}}


def timed(base: str, bundle: JsonObject, status: str) -> float:
    """POST `bundle` to `base`; return the seconds until the whole response has arrived.

    Raises AssertionError if an entry gets another status than `status`.
    """
    body = encode(bundle)
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.netloc, timeout=900)
    start = time.perf_counter()
    connection.request("POST", parts.path, body, HEADERS)
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - start
    connection.close()
    assert response.status == 200, content[:2000]
    statuses = Counter(entry["response"]["status"][:3] for entry in msgspec.json.decode(content)["entry"])
    assert statuses == {status: len(bundle["entry"])}, (base, statuses, content[:2000])
    return seconds
