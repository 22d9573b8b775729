"""A submitter that asks for its answer later: what it does between the 202 and the result."""

import asyncio
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

from support.client import Answer
from support.proxying import World
from support.relaying import TIMEOUT

ASYNC = {"Prefer": "respond-async"}


async def keep(world: World, bundle: Any, dialect: str = "argo", **headers: str) -> str:
    """Submit, and give the path of the status below the base."""
    answer = await world.submit(bundle, dialect, **(ASYNC | headers))
    assert answer.status == 202, answer.data
    return place(answer)


def place(answer: Answer) -> str:
    base, _, name = answer.headers["Content-Location"].rpartition("/")
    assert base.endswith("/fhir/$cgm-submission-status")
    return f"$cgm-submission-status/{name}"


async def polled(world: World, path: str, true: Callable[[Answer], bool], **headers: str) -> Answer:
    """Poll until the answer is as wanted."""
    deadline = time.monotonic() + TIMEOUT
    for pause in repeat(0.02):
        answer = await world.request("GET", path, **headers)
        if true(answer):
            return answer
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(pause)
    raise AssertionError


async def result(world: World, path: str, **headers: str) -> Answer:
    """Poll until there is a result, or a refusal of the poll."""
    return await polled(world, path, lambda answer: answer.status != 202, **headers)


async def under_way(world: World, path: str) -> None:
    """Wait until it is worked on."""
    await polled(world, path, lambda answer: answer.headers.get("X-Progress") == "in progress")


def told(answer: Answer) -> dict[str, Any]:
    """The only entry of a result: status, and the response Bundle or the OperationOutcome."""
    assert answer.status == 200, answer.data
    assert answer.body["type"] == "batch-response"
    (entry,) = answer.body["entry"]
    return entry


def status(answer: Answer) -> int:
    """The status that the synchronous answer would have had."""
    return int(told(answer)["response"]["status"][:3])


def rules(answer: Answer) -> list[str]:
    """The rules that refused the whole submission."""
    return [issue["details"]["coding"][0]["code"] for issue in told(answer)["response"]["outcome"]["issue"]]


def statuses(answer: Answer) -> list[int]:
    """The statuses of the submission's entries."""
    assert status(answer) == 200, answer.data
    return [int(entry["response"]["status"][:3]) for entry in told(answer)["resource"]["entry"]]


def files(path: Path) -> bytes:
    """All bytes that the store has on the disk, its log included."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def largest(path: Path) -> int:
    """The size of the largest file that the store has (bytes)."""
    return max(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


async def raw(port: int, method: bytes, target: str) -> bytes:
    """Ask for a target as it is written, without a client's own clean-up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (method, target.encode()))
    data = await reader.read()
    writer.close()
    return data
