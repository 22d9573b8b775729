"""Submitters: each sends one submission after another, and repeats each until all its entries have a final response."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import aiohttp
from chaos.checker import RETRYABLE, Entry, EntryAnswer, Submission
from chaos.workload import Workload
from support.client import JSON, Client

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject

#: Share of the requests whose submitter disconnects within a second, and sends them again.
DISCONNECTS = 0.05

#: Share of the failures after which a submitter does not try again.
GIVES_UP = 0.05

#: Share of the requests with `Prefer: respond-async`.
ASYNCHRONOUS = 0.15

#: Timeout of a request, and longest pause before the next attempt (seconds).
TIMEOUT = 90.0
PAUSE = 1.5

_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]+/[A-Za-z0-9.-]+)(?:/_history/[^/]+)?$")


@dataclass
class Submitters:
    """All submitters, with the responses that they got; `in_flight` counts the requests at each proxy."""

    workload: Workload
    proxies: Sequence[str]
    sent: list[Submission] = field(default_factory=list)
    abandoned: set[str] = field(default_factory=set)
    """Names of submissions that were not sent again although they had no final response."""
    answers: list[EntryAnswer] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    ending: bool = False
    """Whether to begin no new submission."""

    async def submit_all(self) -> None:
        """Submit until `ending` is set and everything that was begun has a final response."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
            for number in range(self.workload.submitters):
                tasks.create_task(self._submit(number, session))

    async def _submit(self, number: int, session: aiohttp.ClientSession) -> None:
        random, step = Random(f"{self.workload.seed} {number}"), 0
        while not self.ending:
            submission = self.workload.submission(number, step)
            self.sent.append(submission)
            while not await self._attempt(submission, random, session):
                if random.random() < GIVES_UP:
                    self.abandoned.add(submission.name)
                    break
                self.counts["again"] += 1
                await asyncio.sleep(random.uniform(0, PAUSE))
            step += 1

    async def _attempt(self, submission: Submission, random: Random, session: aiohttp.ClientSession) -> bool:
        """Send a submission once; return whether all entries got a final response."""
        proxy = random.choice(self.proxies)
        self.in_flight[proxy] += 1
        try:
            status, content = await self._exchange(
                f"{proxy}/{Client.submission_path(submission.dialect)}", submission, random, session
            )
        except aiohttp.ClientConnectorError:
            self.counts["no connection"] += 1
            return False
        except (aiohttp.ClientError, TimeoutError):
            self.counts["no answer"] += 1
            return False
        finally:
            self.in_flight[proxy] -= 1
        self.counts[f"answered {status}"] += 1
        answers = entry_answers(submission, status, content)
        self.answers += answers
        return all(answer.final for answer in answers)

    async def _exchange(
        self, url: str, submission: Submission, random: Random, session: aiohttp.ClientSession
    ) -> tuple[int, JsonObject]:
        timeout = random.uniform(0, 1) if random.random() < DISCONNECTS else TIMEOUT
        async with session.post(
            url.rstrip("/"),
            data=encode(submission.bundle),
            headers={"Content-Type": JSON} | ({"Prefer": "respond-async"} if random.random() < ASYNCHRONOUS else {}),
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as response:
            status, content = response.status, _json(await response.read())
        if status != 202:
            return status, content
        self.counts["kept, to be answered later"] += 1
        return await self._poll(response.headers["Content-Location"], random, session)

    async def _poll(self, url: str, random: Random, session: aiohttp.ClientSession) -> tuple[int, JsonObject]:
        """Poll until there is a result, even if the proxy is killed in the meantime."""
        while True:
            await asyncio.sleep(random.uniform(0, PAUSE))
            try:
                async with session.get(url, timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as response:
                    status, body = response.status, await response.read()
            except (aiohttp.ClientError, TimeoutError):
                continue
            if status == 200:
                return self._result(_json(body)["entry"][0])
            if status != 202 and status not in RETRYABLE:
                return status, _json(body)

    def _result(self, entry: JsonObject) -> tuple[int, JsonObject]:
        """Return the response in a result. A submission that a proxy gave up after too many kills is to be sent again."""
        status = int(entry["response"]["status"][:3])
        content = entry.get("resource") or entry["response"]["outcome"]
        if "async-given-up" in str(content):
            self.counts["given up by a proxy"] += 1
            return 503, content
        return status, content


def entry_answers(submission: Submission, status: int, content: JsonObject) -> list[EntryAnswer]:
    """Return the response to each entry; a refusal of the whole submission is one of each entry."""
    if status != 200:
        return [EntryAnswer(entry, status, reason=_diagnostics(content)) for entry in submission.entries]
    responses = [entry["response"] for entry in content["entry"]]
    return [_entry_answer(entry, response) for entry, response in zip(submission.entries, responses, strict=True)]


def _entry_answer(entry: Entry, response: JsonObject) -> EntryAnswer:
    location = _LOCATION.search(response.get("location", ""))
    reason = _diagnostics(response.get("outcome", {}))
    return EntryAnswer(entry, int(response["status"][:3]), location and location[1], reason)


def _diagnostics(outcome: JsonObject) -> str:
    return "; ".join(issue["diagnostics"] for issue in outcome.get("issue", ()))


def _json(body: bytes) -> JsonObject:
    """Return a response's JSON; the text of a server that failed (500) becomes an OperationOutcome."""
    try:
        return json.loads(body)
    except ValueError:
        return {"issue": [{"diagnostics": body[:200].decode(errors="replace")}]}
