"""A submitter that prefers an asynchronous response: what it does from the 202 to the result."""

import asyncio
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

from support.client import Response
from support.proxying import World
from support.relaying import TIMEOUT

ASYNC = {"Prefer": "respond-async"}


async def keep(world: World, bundle: Any, dialect: str = "argo", **headers: str) -> str:
    """Submit asynchronously, and return the path of the status, relative to the base URL."""
    answer = await world.submit(bundle, dialect, **(ASYNC | headers))
    assert answer.status == 202, answer.data
    return status_path(answer)


def status_path(answer: Response) -> str:
    """Return the path of the status that a 202 names, relative to the base URL."""
    base, _, job_id = answer.headers["Content-Location"].rpartition("/")
    assert base.endswith("/fhir/$cgm-submission-status")
    return f"$cgm-submission-status/{job_id}"


async def polled(world: World, path: str, condition: Callable[[Response], bool], **headers: str) -> Response:
    """Poll until the condition holds for the answer."""
    deadline = time.monotonic() + TIMEOUT
    for pause in repeat(0.02):
        answer = await world.request("GET", path, **headers)
        if condition(answer):
            return answer
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(pause)
    raise AssertionError


async def result(world: World, path: str, **headers: str) -> Response:
    """Poll until there is a result, or the poll is refused."""
    return await polled(world, path, lambda answer: answer.status != 202, **headers)


async def under_way(world: World, path: str) -> None:
    """Poll until the submission is in progress."""
    await polled(world, path, lambda answer: answer.headers.get("X-Progress") == "in progress")


def submission_entry(answer: Response) -> dict[str, Any]:
    """Return the only entry of a result: its status, and the response Bundle or the OperationOutcome."""
    assert answer.status == 200, answer.data
    assert answer.body["type"] == "batch-response"
    (entry,) = answer.body["entry"]
    return entry


def status(answer: Response) -> int:
    """Return the status that the synchronous response would have had."""
    return int(submission_entry(answer)["response"]["status"][:3])


def rules(answer: Response) -> list[str]:
    """Return the ids of the rules that refused the whole submission."""
    return [issue["details"]["coding"][0]["code"] for issue in submission_entry(answer)["response"]["outcome"]["issue"]]


def statuses(answer: Response) -> list[int]:
    """Return the statuses of the submission's entries."""
    assert status(answer) == 200, answer.data
    return [int(entry["response"]["status"][:3]) for entry in submission_entry(answer)["resource"]["entry"]]


def files(path: Path) -> bytes:
    """Return all bytes that the store has on the disk, its log included."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def largest(path: Path) -> int:
    """Return the size of the largest file that the store has (bytes)."""
    return max(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


async def raw(port: int, method: bytes, target: str) -> bytes:
    """Request a target exactly as it is written; a client library would normalise it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (method, target.encode()))
    data = await reader.read()
    writer.close()
    return data
