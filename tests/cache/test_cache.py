"""What the proxy caches of stored entries and orders, and which writes invalidate it."""

import asyncio
from typing import Any

import pytest
from support.fake_upstream import Gate, before, gets, searches, transactions
from support.proxying import World, counted, entry_rules, locations, observation, proxying, statuses, unprobed

from cgm_proxy.sandbox.simulation.submissions import patient, standing_orders

#: Writes through the proxy that invalidate all stored entries.
INVALIDATING = [
    ("DELETE", "Observation/{id}", None),
    ("DELETE", "Observation?identifier={identity}", None),
    ("PUT", "Observation/{id}", "other"),
    ("POST", "", [{"method": "DELETE", "url": "Observation/{id}"}]),
    ("POST", "", [{"method": "DELETE", "url": "/Obs%65rvation/{id}"}]),
]


@pytest.mark.parametrize(
    ("method", "path", "content"), INVALIDATING, ids=[f"{row[0]} {row[1]}" for row in INVALIDATING]
)
async def test_a_resource_that_a_write_removed_is_stored_again_when_it_is_sent_again(
    method: str, path: str, content: Any
) -> None:
    async with proxying() as world:
        reference = await unprobed(world)
        reading = (await world.ask_store("GET", reference)).body
        names = {"id": reading["id"], "identity": reading["identifier"][-1]["value"]}
        if content == "other":
            content = observation(reading["id"], world.about, "x")
        elif content:
            entries = [{"request": {**request, "url": request["url"].format(**names)}} for request in content]
            content = {"resourceType": "Bundle", "type": "batch", "entry": entries}
        assert (await world.request(method, path.format(**names), content)).status == 200
        if "%65" in str(content):  # this store does not decode it, another one may
            await world.ask_store("DELETE", reference)
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}
        assert len([r for r in await world.stored() if "valueQuantity" in r]) == 40


async def test_a_method_override_that_deletes_invalidates_as_well() -> None:
    async with proxying() as world:
        reference = await unprobed(world)
        await world.request("POST", reference, X_HTTP_Method_Override="delete")
        await world.ask_store("DELETE", reference)  # this store does not know of the header, another one may
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}


async def test_an_entry_that_was_found_while_it_was_deleted_is_not_cached() -> None:
    async with proxying() as world:
        await world.submit(world.readings(40))
        doomed = (await world.stored())[0]["id"]
        await world.request("DELETE", "Observation/none-such")
        gate = Gate(late=True)
        world.fake.script(searches("Observation"), gate)
        sending = asyncio.create_task(world.submit(world.readings(40)))
        await gate.reached.wait()
        assert (await world.request("DELETE", f"Observation/{doomed}")).status == 200
        gate.opened.set()
        await sending
        assert counted(await world.submit(world.readings(40))) == {200: 39, 201: 1}
        assert await world.count() == 40


async def test_cached_entries_are_trusted_after_a_few_of_them_were_looked_up() -> None:
    async with proxying() as world:
        first = await world.submit(world.readings(400, device=True))
        world.fake.seen.clear()
        again = await world.submit(world.readings(400, device=True))
        assert sorted(map(str, world.fake.seen)) == sorted(
            [f"GET {world.about}", "POST Device/_search", "POST Observation/_search"]
        )
        searched = [request for request in world.fake.seen if request.method == "POST"]
        assert sum(request.form["identifier"].count("urn:uuid:") for request in searched) <= 32
        assert locations(again) == locations(first)


async def test_what_was_deleted_past_the_proxy_is_stored_again() -> None:
    async with proxying() as world:
        first = await world.submit(world.readings(40))
        for location in locations(first):
            await world.ask_store("DELETE", str(location).partition("/_history")[0])
        again = await world.submit(world.readings(40))
        assert counted(again) == {201: 40}
        assert await world.count() == 40


async def test_etags_and_locations_are_the_same_however_a_duplicate_is_found() -> None:
    async with proxying() as world:
        first = await world.submit(world.readings(40))
        by_cache = await world.submit(world.readings(40))
        await world.request("DELETE", "Observation/none-such")
        by_search = await world.submit(world.readings(40))
        await world.request("DELETE", "Observation/none-such")
        by_create = await world.submit(world.readings(5))
        for answer in (by_cache, by_search, by_create):
            for entry, first_entry in zip(answer.body["entry"], first.body["entry"], strict=False):
                assert entry["response"]["location"] == first_entry["response"]["location"]
                assert entry["response"]["etag"] == first_entry["response"]["etag"]


#: The status of a submission that lacks a summary which an order demands.
ORDERED = 422


async def is_ordered(world: World) -> bool:
    """Whether the proxy judges readings by an order that demands a summary."""
    answer = await world.submit(world.readings(1))
    return answer.status == ORDERED


def summary_order(world: World) -> dict[str, Any]:
    return standing_orders("argo", world.about)[0]


async def test_orders_are_looked_up_once_even_if_there_are_none() -> None:
    async with proxying() as world:
        for number in (1, 2, 3):
            assert statuses(await world.submit(world.readings(number)))
        assert len(world.fake.received(searches("ServiceRequest"))) == 1
        assert (
            len(world.fake.received(gets(world.about))) == 3
        )  # the submitter must still be allowed to read the patient
        await world.put(summary_order(world))  # past the proxy
        assert not await is_ordered(world)


async def test_orders_are_looked_up_each_time_if_caching_is_switched_off() -> None:
    async with proxying(cache__orders_seconds=0) as world:
        assert not await is_ordered(world)
        await world.put(summary_order(world))
        assert await is_ordered(world)


#: Writes of an order through the proxy. Those that the store does not support are done past the proxy.
WRITES = [
    ("POST", "ServiceRequest", None),
    ("PUT", "ServiceRequest/{id}", None),
    ("PUT", "ServiceRequest?_id={id}", None),
    ("PATCH", "ServiceRequest/{id}", None),
    ("DELETE", "ServiceRequest/none-such", None),
    ("POST", "", {"method": "POST", "url": "ServiceRequest"}),
    ("POST", "", {"method": "PUT", "url": "ServiceRequest/{id}"}),
    ("POST", "", {"method": "POST", "url": ""}),
    ("POST", "$import", None),
]


@pytest.mark.parametrize(("method", "path", "entry"), WRITES, ids=[f"{row[0]} {row[1]} {row[2]}" for row in WRITES])
async def test_a_write_of_an_order_through_the_proxy_takes_effect_at_once(method: str, path: str, entry: Any) -> None:
    async with proxying() as world:
        assert not await is_ordered(world)
        order = summary_order(world)
        content: Any = order
        if entry:
            request = entry | {"url": entry["url"].format(id=order["id"])}
            content = {
                "resourceType": "Bundle",
                "type": "transaction",
                "entry": [{"resource": order, "request": request}],
            }
        answer = await world.request(method, path.format(id=order["id"]), content)
        if answer.status not in {200, 201} or method == "DELETE":
            await world.put(order)
        assert await is_ordered(world)


async def test_an_order_that_was_deleted_through_the_proxy_has_no_effect() -> None:
    async with proxying() as world:
        order = summary_order(world)
        await world.put(order)
        assert await is_ordered(world)
        await world.request("DELETE", f"ServiceRequest/{order['id']}")
        assert not await is_ordered(world)


async def test_a_search_for_orders_through_the_proxy_invalidates_nothing() -> None:
    async with proxying() as world:
        assert not await is_ordered(world)
        await world.request(
            "POST", "ServiceRequest/_search", b"_id=x", Content_Type="application/x-www-form-urlencoded"
        )
        assert not await is_ordered(world)
        assert len([one for one in world.fake.received(searches("ServiceRequest")) if "subject" in one.form]) == 1


@pytest.mark.parametrize("method", ["PUT", "batch"])
async def test_orders_read_while_one_is_written_are_not_cached(method: str) -> None:
    async with proxying() as world:
        order, gate = summary_order(world), Gate()
        entry = {"resource": order, "request": {"method": "PUT", "url": f"ServiceRequest/{order['id']}"}}
        if method == "PUT":
            writing = world.request("PUT", f"ServiceRequest/{order['id']}", order)
        else:
            writing = world.request("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [entry]})
        world.fake.script(lambda request: order["id"] in request.body.decode(), gate)
        task = asyncio.create_task(writing)
        await gate.reached.wait()
        assert not await is_ordered(world)  # true for now, and not cached
        gate.opened.set()
        assert (await task).status in {200, 201}
        assert await is_ordered(world)


async def test_the_result_of_a_look_up_during_a_write_is_not_cached() -> None:
    async with proxying() as world:
        order, gate = summary_order(world), Gate(late=True)
        world.fake.script(searches("ServiceRequest"), gate)
        sending = asyncio.create_task(world.submit(world.readings(1)))
        await gate.reached.wait()
        await world.request("PUT", f"ServiceRequest/{order['id']}", order)
        gate.opened.set()
        assert statuses(await sending) == [201]
        assert await is_ordered(world)


async def test_submissions_at_the_same_moment_share_one_look_up() -> None:
    async with proxying() as world:
        gate = Gate()
        world.fake.script(searches("ServiceRequest"), gate)
        sending = [asyncio.create_task(world.submit(world.readings(1))) for _ in range(5)]
        await gate.reached.wait()
        await asyncio.sleep(0.05)
        gate.opened.set()
        answers = await asyncio.gather(*sending)
        assert sorted(status for answer in answers for status in statuses(answer)) == [200, 200, 200, 200, 201]
        assert len(world.fake.received(searches("ServiceRequest"))) == 1
        assert len(world.fake.received(transactions)) == 1


async def test_a_failed_look_up_is_not_cached() -> None:
    async with proxying() as world:
        world.fake.script(searches("ServiceRequest"), before(500))
        assert (await world.submit(world.readings(1))).status == 502
        assert statuses(await world.submit(world.readings(1))) == [201]


async def test_a_patient_that_did_not_exist_is_found_once_created_through_the_proxy() -> None:
    async with proxying() as world:
        world.about = "Patient/newcomer"
        assert statuses(await world.submit(world.readings(1))) == [400]
        assert entry_rules(await world.submit(world.readings(1))) == ["subject-unknown"]
        assert len(world.fake.received(gets(world.about))) == 2
        await world.request("PUT", "Patient/newcomer", patient("newcomer"))
        assert statuses(await world.submit(world.readings(1))) == [201]


async def test_a_patient_that_was_deleted_is_not_found() -> None:
    async with proxying() as world:
        assert not await is_ordered(world)
        assert (await world.ask_store("DELETE", f"Observation/{(await world.stored())[0]['id']}")).status == 200
        assert (await world.request("DELETE", world.about)).status == 200
        assert statuses(await world.submit(world.readings(1))) == [400]


async def test_orders_are_not_shared_between_authorizations() -> None:
    async with proxying() as world:
        for authorization in ("Bearer a", "Bearer b", "Bearer a", "Bearer b"):
            await world.submit(world.readings(1), Authorization=authorization)
        sent = [request.headers["Authorization"] for request in world.fake.received(searches("ServiceRequest"))]
        assert sent == ["Bearer a", "Bearer b"]
        world.fake.always(gets("Patient/"), before(403))
        assert (await world.submit(world.readings(1), Authorization="Bearer c")).status == 403
        assert (await world.submit(world.readings(1))).status == 403
