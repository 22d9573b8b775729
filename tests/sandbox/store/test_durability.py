"""What was answered survives the process, and concurrent requests store nothing twice."""

import asyncio
import contextlib
import json
import signal
import socket
import sys

import aiohttp
from support.dialogue import SYSTEM, bundle, encode, entry, if_none_exist, observation

SERVE = """
import sys
from aiohttp import web
from cgm_proxy.sandbox.store.app import make_app
web.run_app(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), print=None)
"""
JSON = {"Content-Type": "application/fhir+json"}


@contextlib.asynccontextmanager
async def serving(path):
    """Run the store in a process of its own, and kill it by SIGKILL at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE, str(path), str(port))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await until_ready(session)
            yield session
            process.send_signal(signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_ready(session):
    for _ in range(600):
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with session.get("/fhir/metadata") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise AssertionError("the store did not start")


async def search(session, query):
    async with session.get(f"/fhir/Observation?{query}") as response:
        return json.loads(await response.text())


async def test_what_was_answered_is_there_after_sigkill(tmp_path):
    path, answered, enough = tmp_path / "store.db", [], asyncio.Event()

    async def submit(session):
        for chunk in range(1000):
            entries = [entry(observation(f"{chunk}-{i}"), ifNoneExist=if_none_exist(f"{chunk}-{i}")) for i in range(20)]
            async with session.post("/fhir", data=encode(bundle("transaction", *entries)), headers=JSON) as response:
                assert response.status == 200
                await response.read()
            answered.append(chunk)
            if chunk == 5:
                enough.set()

    async with serving(path) as session:
        async with session.put("/fhir/Patient/p", data=b'{"resourceType":"Patient","id":"p"}', headers=JSON):
            pass
        submitting = asyncio.create_task(submit(session))
        await asyncio.wait_for(enough.wait(), 60)
    with contextlib.suppress(aiohttp.ClientError, RuntimeError):
        await submitting

    async with serving(path) as session:
        stored = [item["resource"] for item in (await search(session, "_count=100000"))["entry"]]
    per_chunk = dict.fromkeys(answered, 0)
    for resource in stored:
        chunk = int(resource["identifier"][0]["value"].split("-")[0])
        per_chunk[chunk] = per_chunk.get(chunk, 0) + 1
    assert len(answered) >= 5
    assert set(per_chunk.values()) == {20}  # the transaction in flight at the kill is stored whole or not at all


async def test_concurrent_conditional_creates_store_one_resource_and_all_get_its_location(fhir):
    await fhir("PUT", "/Patient/p", {"resourceType": "Patient", "id": "p"})
    single = [fhir("POST", "/Observation", observation("r"), If_None_Exist=if_none_exist("r")) for _ in range(20)]
    transaction = bundle("transaction", entry(observation("r"), ifNoneExist=if_none_exist("r")))
    responses = await asyncio.gather(*single, *(fhir("POST", "", transaction) for _ in range(20)))
    locations = [
        response.body["entry"][0]["response"]["location"]
        if response.body["resourceType"] == "Bundle"
        else response.headers["Location"].split("/fhir/")[1]
        for response in responses
    ]
    assert len(set(locations)) == 1
    assert {response.status for response in responses} <= {200, 201}
    assert (await fhir("GET", f"/Observation?identifier={SYSTEM}|r")).body["total"] == 1


async def test_two_processes_on_one_file_store_each_conditional_create_once(tmp_path):
    path = tmp_path / "store.db"
    async with serving(path) as first, serving(path) as second:
        async with first.put("/fhir/Patient/p", data=b'{"resourceType":"Patient","id":"p"}', headers=JSON) as response:
            assert response.status == 201
        entries = [entry(observation(str(i)), ifNoneExist=if_none_exist(str(i))) for i in range(50)]

        async def post(session):
            async with session.post("/fhir", data=encode(bundle("transaction", *entries)), headers=JSON) as response:
                return response.status

        assert await asyncio.gather(*(post(session) for session in (first, second) * 3)) == [200] * 6
        assert (await search(second, "_summary=count"))["total"] == 50
