"""Submissions of new readings, posted through the proxy and straight to HAPI."""

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

#: Each submission begins this much later than the one before, so that no two share an instant.
_days = count(0, 120)


def new_readings(store: Client, readings: int) -> JsonObject:
    """Make a dialect A submission of `readings` for a new patient, whose standing orders ask for readings.

    The readings refer to the patient only, as the guide's example does. With a second reference HAPI on H2 reads its
    whole table of resources for each entry of a batch, which would flatter the proxy.
    """
    name = f"p{uuid4().hex[:12]}"
    reference = f"Patient/{name}"
    stored = [store.put(reference, patient(name))]
    stored += [store.put(f"ServiceRequest/{order['id']}", order) for order in standing_orders("argo", reference)]
    assert all(answer.status in {200, 201} for answer in stored)
    start = START + timedelta(days=next(_days))
    return submission("argo", reference, readings=readings, start=start, summary=False, pdf=False, device=False)


def conditional(bundle: JsonObject) -> JsonObject:
    """Give each entry an identifier and the ifNoneExist for it, as a careful submitter would without the proxy."""
    return bundle | {"entry": [_conditional(entry) for entry in bundle["entry"]]}


def _conditional(entry: JsonObject) -> JsonObject:
    system, value = "urn:ietf:rfc:3986", f"urn:uuid:{uuid4()}"
    resource = entry["resource"] | {"identifier": [{"system": system, "value": value}]}
    return entry | {"resource": resource, "request": entry["request"] | {"ifNoneExist": f"identifier={system}|{value}"}}


def timed(base: str, bundle: JsonObject, status: str) -> float:
    """POST `bundle` to `base` and give the seconds until all of its answer is there.

    Raises AssertionError when any entry is answered otherwise than by `status`.
    """
    body = encode(bundle)
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.netloc, timeout=900)
    start = time.perf_counter()
    connection.request("POST", parts.path, body, HEADERS)
    response = connection.getresponse()
    answer = response.read()
    seconds = time.perf_counter() - start
    connection.close()
    assert response.status == 200, answer[:2000]
    statuses = Counter(entry["response"]["status"][:3] for entry in msgspec.json.decode(answer)["entry"])
    assert statuses == {status: len(bundle["entry"])}, (base, statuses, answer[:2000])
    return seconds
