"""How the upstream is asked: with whose authority, with which header fields, and what its answers and silence become."""

import asyncio
import socket
from contextlib import closing
from typing import Any

import pytest
from support.fake_upstream import ReceivedRequest, before, changed, closed, gets, reset, searches, silent, transactions
from support.proxying import OTHER, entry_rules, proxying, statuses
from support.relaying import talk

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.rest import responses
from cgm_proxy.sandbox.simulation.submissions import standing_orders

MINE, SERVICE = "Bearer mine", "Bearer service-token"

#: Conditions and references that make the proxy look everything up that it can.
CURIOUS = {"Authorization": MINE, "Prefer": "return=representation"}


def authority(asked: ReceivedRequest) -> str | None:
    return asked.headers.get("Authorization")


async def curious(world) -> None:
    """Let the proxy ask for all that it ever asks for: orders, the last submission, what is referenced, matches, content."""
    await world.put({"resourceType": "Device", "id": "d1", "serialNumber": "7"})
    await world.put(standing_orders("argo", world.about)[1])
    bundle = world.readings(40)
    for entry in bundle["entry"]:
        entry["resource"]["device"] = {"reference": "Device/d1"}
    assert set(statuses(await world.submit(bundle, **CURIOUS))) == {201}
    await world.request("DELETE", "Observation/none-such")
    world.fake.seen = [asked for asked in world.fake.seen if asked.method != "DELETE"]
    assert set(statuses(await world.submit(bundle, **CURIOUS))) == {200}


async def test_without_a_service_token_all_is_asked_with_the_submitters_authorization() -> None:
    async with proxying() as world:
        await curious(world)
        kinds = {str(asked) for asked in world.fake.seen}
        assert {"POST ", "POST ServiceRequest/_search", "POST Observation/_search", "POST Device/_search"} < kinds
        assert {authority(asked) for asked in world.fake.seen if asked.path != "metadata"} == {MINE}
        assert {authority(asked) for asked in world.fake.received(gets("metadata"))} == {None}


async def test_answers_to_what_the_proxy_asks_for_itself_may_come_compressed() -> None:
    async with proxying() as world:
        await curious(world)
        assert {asked.headers.get("Accept-Encoding") for asked in world.fake.seen} == {"gzip"}


async def test_a_service_token_is_for_searches_alone() -> None:
    async with proxying(upstream__token="service-token") as world:
        await curious(world)
        reads = [asked for asked in world.fake.seen if asked.path.endswith("_search")]
        shown = [
            asked for asked in reads if str(asked) == "POST Observation/_search" and asked.body.startswith(b"_id=")
        ]
        assert {authority(asked) for asked in shown} == {
            MINE
        }  # for a representation: what the submitter itself may see
        assert {authority(asked) for asked in reads if asked not in shown} == {SERVICE}
        assert {authority(asked) for asked in world.fake.received(transactions)} == {MINE}
        assert {authority(asked) for asked in world.fake.received(gets("Patient/"))} == {MINE}
        assert sum(authority(asked) == SERVICE for asked in world.fake.seen) == len(reads) - len(shown)


@pytest.mark.parametrize("path", ["", "Patient", "Observation/_search", "metadata"])
async def test_the_service_token_never_goes_with_what_passes_through(path: str) -> None:
    async with proxying(upstream__token="service-token") as world:
        await world.request("GET" if path == "metadata" else "POST", path, b"{}" if path != "metadata" else None)
        assert [authority(asked) for asked in world.fake.seen] == [None]


async def test_without_authorization_writes_go_without_one_even_where_there_is_a_service_token() -> None:
    async with proxying(upstream__token="service-token") as world:
        assert statuses(await world.submit(world.readings(1))) == [201]
        assert [authority(asked) for asked in world.fake.received(transactions)] == [None]
        assert [authority(asked) for asked in world.fake.received(gets("Patient/"))] == [None]


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_a_method_override_does_not_make_the_service_token_write(name: str) -> None:
    async with proxying(upstream__token="service-token") as world:
        await world.submit(world.readings(40), **{name.replace("-", "_"): "DELETE"})
        assert world.fake.seen
        assert not [asked for asked in world.fake.seen if name in asked.headers]


def with_next(url: str):
    return lambda page: {**page, "link": [{"relation": "next", "url": url}], "entry": []}


async def test_a_next_link_elsewhere_takes_no_token_there() -> None:
    visitors: list[Any] = []
    elsewhere = await asyncio.start_server(lambda _r, writer: (visitors.append(1), writer.close()), "127.0.0.1", 0)
    port = elsewhere.sockets[0].getsockname()[1]
    async with proxying(upstream__token="service-token") as world:
        (order,) = standing_orders("argo", world.about)[:1]
        page = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": order}]}
        link = f"http://127.0.0.1:{port}/evil/ServiceRequest?_page=2&x=%7C"
        world.fake.script(searches("ServiceRequest"), changed(with_next(link)))
        world.fake.script(gets("ServiceRequest"), before(200, page))
        answer = await world.submit(world.readings(1), Authorization=MINE)
        assert answer.status == 422  # the second page's order wants a summary
        (second,) = world.fake.received(gets("ServiceRequest"))
        assert (second.query, authority(second)) == ("_page=2&x=%7C", SERVICE)
        assert visitors == []
    elsewhere.close()


#: Links to next pages, and what is asked of the upstream then.
LINKS = [
    ("http://up.example/fhir?_getpages=1&_getpagesoffset=20", "?_getpages=1&_getpagesoffset=20"),
    ("http://up.example/fhir/?_getpages=1", "?_getpages=1"),
    ("http://up.example/fhir/Observation?page=2", "/Observation?page=2"),
    ("http://up.example/fhir/Observation/?_page_token=a%7Cb", "/Observation?_page_token=a%7Cb"),
    ("http://up.example/fhir/Observation/_search?page=2", "/Observation/_search?page=2"),
    ("https://up.example/x/y/Observation?page=2#end", "/Observation?page=2"),
    ("Observation?page=2", "/Observation?page=2"),
    ("/fhir/Observation?page=2", "/Observation?page=2"),
    ("?page=2", "?page=2"),
    ("http://evil.example/?page=2", "?page=2"),
    ("http://up.example/fhir/Patient?page=2", "?page=2"),
    ("http://up.example/fhir/Observation/../Patient?page=2", "/Observation/../Patient?page=2"),
    ("http://up.example/fhir?a=b c\r\nX-Evil: 1", "?a=b%20c%0D%0AX-Evil:%201"),
    ("http://up.example/fhir?a=é", "?a=%C3%A9"),
]


@pytest.mark.parametrize(("link", "asked"), LINKS)
def test_a_next_link_is_followed_at_the_upstream_alone(link: str, asked: str) -> None:
    page = {"link": [{"relation": "self", "url": "http://x"}, {"relation": "next", "url": link}]}
    assert responses.next_page(page, "Observation") == asked


@pytest.mark.parametrize("link", [None, 7, "x", [7], [{"relation": "next"}], [{"relation": "next", "url": 7}], {}])
def test_what_is_no_next_link_ends_the_pages(link: Any) -> None:
    assert responses.next_page({"link": link}, "Observation") is None


#: Which read is refused, and with what; what the submitter is answered.
REFUSED = [
    (gets("Patient/"), 401, 401),
    (gets("Patient/"), 403, 403),
    (gets("Patient/"), 429, 429),
    (gets("Patient/"), 302, 502),
    (gets("Patient/"), 400, 502),
    (gets("Patient/"), 500, 502),
    (searches("ServiceRequest"), 401, 401),
    (searches("ServiceRequest"), 403, 403),
    (searches("ServiceRequest"), 429, 429),
    (searches("ServiceRequest"), 404, 502),
    (searches("ServiceRequest"), 307, 502),
    (searches("ServiceRequest"), 503, 502),
]


@pytest.mark.parametrize(("about", "status", "answered"), REFUSED)
async def test_a_refusal_of_the_first_reads_is_the_whole_requests(about, status: int, answered: int) -> None:
    said = {"WWW_Authenticate": 'Bearer realm="fhir"', "Retry_After": "7", "Location": "http://127.0.0.1:1/"}
    async with proxying() as world:
        world.fake.script(about, before(status, **said))
        answer = await world.submit(world.readings(2))
        assert answer.status == answered
        assert answer.rules
        passed = answered in {401, 403, 429}
        assert answer.headers.get("WWW-Authenticate") == ('Bearer realm="fhir"' if passed else None)
        assert answer.headers.get("Retry-After") == ("7" if passed else None)
        assert await world.count() == 0
        assert world.fake.received(transactions) == []
        assert statuses(await world.submit(world.readings(2))) == [201, 201]


@pytest.mark.parametrize(("status", "code"), [(401, "login"), (403, "forbidden"), (429, "throttled")])
async def test_the_reason_why_a_read_is_refused_is_passed_on(status: int, code: str) -> None:
    async with proxying() as world:
        world.fake.script(gets("Patient/"), before(status))
        answer = await world.submit(world.readings(1))
        assert (answer.rules, [issue["code"] for issue in answer.body["issue"]]) == (["upstream-authority"], [code])


@pytest.mark.parametrize("status", [404, 410])
async def test_a_patient_that_is_not_there_refuses_the_entries(status: int) -> None:
    async with proxying() as world:
        world.fake.script(gets("Patient/"), before(status))
        answer = await world.submit(world.readings(2))
        assert statuses(answer) == [400, 400]
        assert entry_rules(answer) == ["subject-unknown"]


#: What happens to the read of the Patient, as often as it is made; status and rule of the answer.
SILENT = {
    "reset twice": ([reset(committed=False)] * 2, 502, "upstream-broken"),
    "closed twice": ([closed(committed=False)] * 2, 502, "upstream-broken"),
    "silent": ([silent(committed=False)], 504, "upstream-timeout"),
}


@pytest.mark.parametrize(("acts", "status", "rule"), SILENT.values(), ids=SILENT)
async def test_an_upstream_that_says_nothing_is_a_gateway_fault(acts, status: int, rule: str) -> None:
    async with proxying(upstream__read_timeout=0.4) as world:
        world.fake.always(gets("Patient/"), acts[0])
        answer = await world.submit(world.readings(1))
        assert (answer.status, answer.rules) == (status, [rule])


async def test_a_read_whose_connection_had_died_is_made_again() -> None:
    async with proxying() as world:
        world.fake.script(searches("ServiceRequest"), closed(committed=False))
        assert statuses(await world.submit(world.readings(1))) == [201]


async def test_an_upstream_that_is_not_there_is_unavailable() -> None:
    async with proxying(upstream__url="http://127.0.0.1:1/fhir") as world:
        answer = await world.submit(world.readings(1))
        assert (answer.status, answer.rules) == (503, ["upstream-unreachable"])


async def test_an_upstream_that_accepts_nobody_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        async with proxying(upstream__url=f"http://127.0.0.1:{port}/fhir", upstream__connect_timeout=0.3) as world:
            answer = await world.submit(world.readings(1))
            assert (answer.status, answer.rules) == (503, ["upstream-unreachable"])
        for one in waiting:
            one.close()


#: Answers to a search that are no searchset, or hold what is none of its resources.
STRANGE: list[Any] = [
    {},
    {"entry": None},
    {"entry": {"resource": {}}},
    {"entry": [None, 7, "x", [], {}, {"resource": None}, {"resource": 7}]},
    {"entry": [{"resource": {"resourceType": "Observation"}}]},
    {"entry": [{"resource": {"resourceType": "Observation", "id": 7}}]},
    {"entry": [{"resource": {"resourceType": "Observation", "id": "../x"}}]},
    {"entry": [{"resource": {"resourceType": "Observation", "id": "a", "identifier": 7}}]},
    {"entry": [{"resource": {"resourceType": "Observation", "id": "a", "identifier": [7, {"value": []}, {}]}}]},
    {"entry": [{"resource": {"resourceType": "Observation", "id": "a", "meta": 7, "subject": "x"}}]},
    {"entry": [{"resource": {"resourceType": "ServiceRequest", "id": "a", "status": "active", "code": 7}}]},
    {"entry": [{"resource": {"resourceType": "OperationOutcome", "id": "a"}}]},
    {"link": {"relation": "next"}},
    {"link": [None, {"relation": "next", "url": None}]},
    {"resourceType": "OperationOutcome"},
]


@pytest.mark.parametrize("page", STRANGE, ids=[encode(page).decode() for page in STRANGE])
async def test_a_strange_answer_to_a_search_finds_nothing(page: Any) -> None:
    async with proxying() as world:
        for kind in ("ServiceRequest", "Observation", "Device"):
            world.fake.always(searches(kind), before(200, page))
        bundle = world.readings(40)
        bundle["entry"][0]["resource"]["device"] = {"reference": "Device/none"}
        bundle["entry"][1]["request"]["ifNoneExist"] = "status=final"
        bundle["entry"][2]["request"]["ifNoneExist"] = "identifier=a|b"
        found = statuses(await world.submit(bundle, Prefer="return=representation"))
        assert found[0] == 422  # no such Device
        assert set(found[3:]) == {201}


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b"7", b'{"entry":[', b"[" * 100_000])
async def test_an_answer_to_a_search_that_is_no_resource_is_a_bad_gateway(answer: bytes) -> None:
    async with proxying() as world:
        world.fake.always(searches("ServiceRequest"), before(200, answer))
        refused = await world.submit(world.readings(1))
        assert (refused.status, refused.rules) == (502, ["upstream-answer"])
        assert await world.count() == 0


# ---- header fields

TRAVEL = {
    "X-Tenant": "north",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Cookie": "session=1",
    "User-Agent": "app/1.0",
    "Accept-Language": "de",
}

#: What belongs to the submitter's own request and connection.
STAY = {
    "Content-Language": "de",
    "Content-MD5": "Q2hlY2sgSW50ZWdyaXR5IQ==",
    "Content-Location": "/x",
    "Content-Disposition": "inline",
    "Digest": "sha-256=x",
    "If-None-Exist": "identifier=a|b",
    "If-Match": 'W/"1"',
    "If-Unmodified-Since": "Fri, 31 Dec 1999 23:59:59 GMT",
    "Range": "bytes=0-1",
    "Prefer": "handling=strict",
    "Keep-Alive": "timeout=5",
    "Proxy-Authorization": "Basic eDp5",
    "TE": "trailers",
    "Forwarded": "for=6.6.6.6;host=evil.example",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Port": "6",
    "X-Forwarded-Prefix": "/evil",
    "X-Original-URL": "/evil",
    "X-Rewrite-URL": "/evil",
}


async def test_end_to_end_fields_travel_with_every_request_and_others_with_none() -> None:
    async with proxying(listen__public_url="https://clinic.example/cgm/fhir") as world:
        bundle = world.readings(40)
        answer = await world._request(world.url.replace("/fhir", "/cgm/fhir"), "POST", "", bundle, TRAVEL | STAY)
        assert set(statuses(answer)) == {201}
        asked = [one for one in world.fake.seen if one.path != "metadata"]
        assert len(asked) == 4
        for one in asked:
            assert {name: one.headers.get(name) for name in TRAVEL} == TRAVEL
            assert not [name for name, value in STAY.items() if one.headers.get(name) == value]
            assert one.headers["X-Forwarded-Host"] == "clinic.example"
            assert one.headers["X-Forwarded-Proto"] == "https"
            assert one.headers["X-Forwarded-Port"] == "443"
            assert one.headers["X-Forwarded-Prefix"] == "/cgm/fhir"
            assert one.headers["X-Forwarded-For"] == "127.0.0.1"
            assert one.headers.getall("Forwarded") == ['for=127.0.0.1;host="clinic.example";proto=https']
            assert one.headers["Host"] == world.fake.url.split("/")[2]


async def test_what_a_connection_field_names_stays_and_a_field_sent_twice_travels_twice() -> None:
    async with proxying() as world:
        body = encode(world.readings(1))
        head = (
            b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Type: application/fhir+json\r\nContent-Length: %d\r\n"
            b"Connection: close, X-Hop\r\nX-Hop: 1\r\nX-Two: a\r\nX-Two: b\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            assert (await talk(reader, writer, head % len(body) + body)).status == 200
        (sent,) = world.fake.received(transactions)
        assert "X-Hop" not in sent.headers
        assert sent.headers.getall("X-Two") == ["a", "b"]
        assert sent.headers["X-Forwarded-For"] == "6.6.6.6, 127.0.0.1"


@pytest.mark.parametrize("given", ["a1", "0d1f:2.3_4-5", "x" * 64])
async def test_a_request_id_travels_upstream_and_back(given: str) -> None:
    async with proxying() as world:
        answer = await world.submit(world.readings(1), X_Request_ID=given)
        assert answer.headers["X-Request-ID"] == given
        assert {asked.headers.get("X-Request-ID") for asked in world.fake.seen if asked.path != "metadata"} == {given}


@pytest.mark.parametrize(
    "given", ["", "a b", "x" * 65, 'a","level":"error', "<script>", "a;b", "é", "a\tb", "${jndi:x}"]
)
async def test_a_request_id_that_could_be_anything_is_replaced(given: str) -> None:
    async with proxying() as world:
        answer = await world.submit(world.readings(1), X_Request_ID=given)
        made = answer.headers["X-Request-ID"]
        assert made != given
        assert len(made) == 16
        assert {asked.headers.get("X-Request-ID") for asked in world.fake.seen if asked.path != "metadata"} == {made}


async def test_a_request_id_with_a_folded_line_makes_no_field_upstream() -> None:
    async with proxying() as world:
        body = encode(world.readings(1))
        head = b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Type: application/fhir+json\r\nContent-Length: %d\r\n"
        head = head % len(body) + b"X-Request-ID: a\r\n X-Evil: 1\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        with closing(writer):
            answer = await talk(reader, writer, head + body)
        assert answer.status in {200, 400}
        assert not [asked for asked in world.fake.seen if "X-Evil" in asked.headers]


async def test_the_format_asked_for_upstream_is_the_proxys_own() -> None:
    async with proxying() as world:
        await world.submit(world.readings(1), Accept="application/fhir+xml")
        for asked in world.fake.seen:
            assert asked.headers.getall("Accept") == ["application/fhir+json"]


async def test_searches_are_never_answered_from_the_servers_own_cache() -> None:
    async with proxying() as world:
        await curious(world)
        found = [asked for asked in world.fake.seen if asked.path.endswith("_search")]
        assert {asked.headers["Cache-Control"] for asked in found} == {"no-cache"}
        assert all(asked.query == "" for asked in found)  # identities and patients stay out of URLs


async def test_another_patients_orders_are_none_of_the_submissions() -> None:
    async with proxying() as world:
        await world.put(standing_orders("argo", OTHER)[0])
        assert statuses(await world.submit(world.readings(1))) == [201]
        (asked,) = world.fake.received(searches("ServiceRequest"))
        assert asked.form["subject"] == [world.about]
