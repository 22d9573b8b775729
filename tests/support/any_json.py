"""Hypothesis strategies for entries with any JSON in them."""

from typing import Any

from hypothesis import strategies as st
from support.submissions import device, reading, summary, urn

# fmt: off
TEXTS = st.sampled_from([
    urn(1), urn(2),
    "", "x", "POST", "Observation", "Device", "Patient/1", "Patient/2", "#x", "http://loinc.org", "99504-3",
    "2025-06-01T00:00:00Z", "2025", "urn:ietf:rfc:3986", "mg/dL", 'a"b\\', "http://up:8081/fhir/Device/1", "\x00",
])


MEMBERS = st.sampled_from([
    "resourceType", "id", "meta", "identifier", "system", "value", "code", "coding", "subject", "reference",
    "patient", "effectiveDateTime", "valueQuantity", "unit", "device", "hasMember", "result", "effectivePeriod",
    "start", "end", "dataAbsentReason", "serialNumber", "udiCarrier", "fullUrl", "x",
])


# fmt: on
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4),
    max_leaves=8,
)


BROKEN = st.tuples(
    st.sampled_from([reading(), summary(urn(1), urn(2)), device(), reading(device={"reference": urn(2)})]),
    st.dictionaries(MEMBERS, VALUES, max_size=3),
).map(lambda pair: pair[0] | pair[1])


REQUESTS = st.just({"method": "POST", "url": "Observation"}) | VALUES


ENTRIES = st.one_of(
    VALUES,
    st.fixed_dictionaries({"resource": BROKEN | VALUES, "request": REQUESTS}, optional={"fullUrl": TEXTS | VALUES}),
)
