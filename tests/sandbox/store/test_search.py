"""Searches over 26 observations of two patients. The numbers of matches are those of HAPI 8.8.0."""

import itertools
import re
from urllib.parse import quote, urlencode

import pytest
from support.dialogue import SYSTEM, bundle, entry, observation

from cgm_proxy.sandbox.store import search, time_spans
from cgm_proxy.sandbox.store.database import Database


@pytest.fixture
async def filled(fhir, monkeypatch):
    """Patient/p with observations o0 to o24, from 2024-05-01 to -25 at 10:00 UTC, and Patient/q with one, stored last."""
    clock = itertools.count(1_700_000_000_000)
    monkeypatch.setattr(time_spans, "now", lambda: next(clock))
    patients = [
        {"resourceType": "Patient", "id": patient_id, "identifier": [{"value": patient_id}]} for patient_id in "pq"
    ]
    days = [observation(f"o{i}", effectiveDateTime=f"2024-05-{i + 1:02d}T10:00:00Z") for i in range(25)]
    other = observation("x,y", "Patient/q", status="amended", effectivePeriod={"start": "2024-05-30"})
    del other["effectiveDateTime"]
    puts = [entry(patient, "PUT", f"Patient/{patient['id']}") for patient in patients]
    assert (await fhir("POST", "", bundle("transaction", *puts, *map(entry, [*days, other])))).status == 200
    return fhir


COUNTS = [
    ("", 26),
    ("patient=Patient/p", 25),
    ("patient=p", 25),
    ("subject=Patient/p", 25),
    ("subject=p", 25),
    ("subject:Patient=p", 25),
    ("subject=Patient/p,Patient/q", 26),
    ("patient=Group/p", 0),
    ("patient=Patient/none", 0),
    ("patient:missing=true", 0),
    ("device:missing=true", 26),
    ("date=2024-05-03", 1),
    ("date=ge2024-05-03&patient=p", 23),
    ("date=gt2024-05-03&patient=p", 22),
    ("date=le2024-05-03", 3),
    ("date=lt2024-05-03", 2),
    ("date=ne2024-05-03&patient=p", 24),
    ("date=sa2024-05-03&patient=p", 22),
    ("date=eb2024-05-03", 2),
    ("date=2024-05&patient=p", 25),
    ("date=2024&patient=p", 25),
    ("date=ge2024-05-03T10:00:00Z&patient=p", 23),
    ("date=gt2024-05-03T10:00:00Z&patient=p", 22),
    ("date=lt2024-05-03T10:00:00Z", 2),
    ("date=le2024-05-03T12:00:00%2B02:00", 3),
    ("date=2024-05-03T10:00Z", 1),
    ("date=ge2024-05-03&date=lt2024-05-05", 2),
    ("date=ge2030", 1),  # the open period
    ("code=99504-3", 26),
    ("code=http://loinc.org|99504-3", 26),
    ("code=http://loinc.org|", 26),
    ("code=|99504-3", 0),
    ("code=other,99504-3", 26),
    ("code:not=99504-3", 0),
    ("status=final", 25),
    ("status=http://hl7.org/fhir/observation-status|final", 25),
    ("status=final,amended", 26),
    ("status=", 26),
    ("status=,", 26),
    ("category=laboratory", 0),
    (f"identifier={SYSTEM}|o1,{SYSTEM}|o2,{SYSTEM}|none", 2),
    (f"identifier=o1,{SYSTEM}|o2,http://other|o3", 2),
    (f"identifier={SYSTEM}|x\\,y", 1),
    (f"identifier={SYSTEM}|x,y", 0),
    ("_id=none", 0),
    ("_lastUpdated=ge2020", 26),
    ("_lastUpdated=lt2020", 0),
    ("_unheard=1", 26),
]


@pytest.mark.parametrize(("query", "count"), COUNTS)
async def test_a_search_counts_its_matches(filled, query, count):
    assert (await filled("GET", f"/Observation?_summary=count&{query}")).body["total"] == count
    form = await filled("POST", "/Observation/_search", f"_count=0&{query}", Content_Type=FORM)
    assert form.body["total"] == count


FORM = "application/x-www-form-urlencoded"

WRONG = [
    ("foo=1", 'HAPI-0524: Unknown search parameter "foo"'),
    ("_include=Observation:subject", "HAPI-0524"),
    ("patient.name=x", "HAPI-0524"),
    ("code:foo=1", 'Unsupported modifier "foo"'),
    ("date=foo", "HAPI-1940"),
    ("date=zz2024", "HAPI-1941"),
    ("date=2024-13", "HAPI-1882"),
    ("date=2024-05-01,2024-05-02", "HAPI-1930"),
    ("_count=x", "HAPI-0375"),
    ("_sort=foo", "HAPI-1194"),
    ("_summary=true", "_summary"),
]


@pytest.mark.parametrize(("query", "text"), WRONG)
async def test_an_unsupported_or_malformed_search_is_refused(filled, query, text):
    response = await filled("GET", f"/Observation?{query}")
    assert (response.status, text in response.diagnostics) == (400, True)


async def test_a_match_has_its_url_and_mode(filled):
    body = (await filled("GET", "/Patient?identifier=p", Host="a.example")).body
    assert (body["type"], body["total"]) == ("searchset", 1)
    assert body["entry"][0]["fullUrl"] == "http://a.example/fhir/Patient/p"
    assert body["entry"][0]["search"] == {"mode": "match"}
    assert body["link"] == [{"relation": "self", "url": "http://a.example/fhir/Patient?identifier=p"}]


async def test_pages_show_what_the_search_found_at_first(filled):
    page, seen = (await filled("GET", "/Observation?patient=p&_count=10&_sort=date")).body, []
    assert "total" not in page
    await filled("POST", "/Observation", observation("late", effectiveDateTime="2024-05-02"))
    while page:
        seen += [item["resource"]["identifier"][0]["value"] for item in page["entry"]]
        next_urls = [link["url"] for link in page["link"] if link["relation"] == "next"]
        page = (await filled("GET", next_urls[0].split("/fhir")[1])).body if next_urls else None
    assert seen == [f"o{i}" for i in range(25)]


async def test_a_search_that_is_not_in_the_cache_is_gone(filled):
    response = await filled("GET", "?_getpages=no-such-search&_getpagesoffset=10")
    assert (response.status, "HAPI-0417" in response.diagnostics) == (410, True)


async def test_the_total_is_returned_on_demand(filled):
    assert (await filled("GET", "/Observation?_count=2&_total=accurate")).body["total"] == 26


@pytest.mark.parametrize(
    ("sort", "first"),
    [("date", "o0"), ("-date", "x,y"), ("-status,date", "o0"), ("status,-date", "x,y"), ("-_lastUpdated", "x,y")],
)
async def test_matches_are_sorted(filled, sort, first):
    body = (await filled("GET", f"/Observation?_sort={sort}&_count=1")).body
    assert body["entry"][0]["resource"]["identifier"][0]["value"] == first


async def test_elements_returns_a_part_of_the_resource_and_tags_it(filled):
    resource = (await filled("GET", "/Observation?_elements=identifier&_count=1")).body["entry"][0]["resource"]
    assert set(resource) == {"resourceType", "id", "meta", "identifier"}
    assert resource["meta"]["tag"][0]["code"] == "SUBSETTED"


async def test_a_form_can_search_for_hundreds_of_identifiers(filled):
    identifiers = ",".join(f"{SYSTEM}|o{i}" for i in range(0, 800, 2))
    form = urlencode({"identifier": identifiers, "_elements": "identifier", "_count": "1000"})
    body = (await filled("POST", "/Observation/_search", form, Content_Type=FORM)).body
    values = {item["resource"]["identifier"][0]["value"] for item in body["entry"]}
    assert values == {f"o{i}" for i in range(0, 25, 2)}


@pytest.mark.parametrize("query", ["identifier=s%7Ca,s%7Cb", "patient=p", "patient=p&date=ge2024", "code=99504-3"])
def test_a_search_uses_an_index_and_does_not_scan_all_resources(query):
    database, pairs = Database(), [tuple(part.split("=")) for part in query.split("&")]
    sql, arguments = search.parse_search("Observation", pairs).sql()
    plan = "\n".join(row[3] for row in database.select(f"EXPLAIN QUERY PLAN {sql}", arguments))
    database.close()
    assert "SCAN" not in plan
    assert re.search(r"SEARCH r USING INTEGER PRIMARY KEY", plan)


@pytest.mark.parametrize("token", ["a b", "ä", "a+b", "a%20b", "a&b", "a'b"])
async def test_a_value_with_special_characters_is_found(fhir, token):
    await fhir("POST", "/Patient", {"resourceType": "Patient", "identifier": [{"system": "s", "value": token}]})
    assert (await fhir("GET", f"/Patient?identifier={quote('s|' + token)}")).body["total"] == 1


SPANS = [
    ("1970-01-01T00:00:00Z", 0, 999),
    ("1970-01-01T00:00:00.5Z", 500, 500),
    ("1970-01-01T01:00+01:00", 0, 59_999),
    ("1970-01-01", 0, 86_399_999),
    ("1970-02", 31 * 86_400_000, 59 * 86_400_000 - 1),
    ("1970", 0, 365 * 86_400_000 - 1),
]


@pytest.mark.parametrize(("text", "low", "high"), SPANS)
def test_a_date_means_its_whole_span(text, low, high):
    assert time_spans.span(text) == (low, high)
