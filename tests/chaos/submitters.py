"""Submitters as they are in the field: each sends one submission after another, and again until it is answered for good."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import aiohttp
from chaos.checker import AGAIN, Answer, Entry, Submission
from chaos.workload import Workload
from support.client import JSON, Client

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.json_values import JsonObject

#: Share of the requests whose submitter hangs up soon, and sends them again.
HANGS_UP = 0.05

#: Share of the failures after which a submitter never comes back.
GIVES_UP = 0.05

#: Share of the requests whose submitter would rather be told later what became of them.
ASYNCHRONOUS = 0.15

#: Longest wait for an answer, and longest pause before the same is sent again (seconds).
PATIENCE = 90.0
PAUSE = 1.5

_PLACE = re.compile(r"(?:^|/)([A-Z][A-Za-z]+/[A-Za-z0-9.-]+)(?:/_history/[^/]+)?$")


@dataclass
class Submitters:
    """All submitters, and all that they were answered; `in_flight` counts the requests at each proxy."""

    workload: Workload
    proxies: Sequence[str]
    sent: list[Submission] = field(default_factory=list)
    abandoned: set[str] = field(default_factory=set)
    """Names of the submissions that were not sent again, although they were not answered for good."""
    answers: list[Answer] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    ending: bool = False
    """Whether nothing new is to be begun."""

    async def submit_all(self) -> None:
        """Submit until `ending`, and until all is answered that was begun."""
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
        """Send a submission once and note the answers; whether all of them are final."""
        proxy = random.choice(self.proxies)
        self.in_flight[proxy] += 1
        try:
            status, said = await self._exchange(
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
        answers = read(submission, status, said)
        self.answers += answers
        return all(answer.final for answer in answers)

    async def _exchange(
        self, url: str, submission: Submission, random: Random, session: aiohttp.ClientSession
    ) -> tuple[int, JsonObject]:
        patience = random.uniform(0, 1) if random.random() < HANGS_UP else PATIENCE
        async with session.post(
            url.rstrip("/"),
            data=encode(submission.bundle),
            headers={"Content-Type": JSON} | ({"Prefer": "respond-async"} if random.random() < ASYNCHRONOUS else {}),
            timeout=aiohttp.ClientTimeout(total=patience),
        ) as answer:
            status, said = answer.status, _json(await answer.read())
        if status != 202:
            return status, said
        self.counts["kept, to be answered later"] += 1
        return await self._later(answer.headers["Content-Location"], random, session)

    async def _later(self, url: str, random: Random, session: aiohttp.ClientSession) -> tuple[int, JsonObject]:
        """Ask what became of a submission until that is told, also of a proxy that was killed meanwhile."""
        while True:
            await asyncio.sleep(random.uniform(0, PAUSE))
            try:
                async with session.get(url, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as answer:
                    status, said = answer.status, await answer.read()
            except (aiohttp.ClientError, TimeoutError):
                continue
            if status == 200:
                return self._result(_json(said)["entry"][0])
            if status != 202 and status not in AGAIN:
                return status, _json(said)

    def _result(self, entry: JsonObject) -> tuple[int, JsonObject]:
        """Read the answer out of a result; a submission that too many kills have met is to be sent again."""
        status, said = int(entry["response"]["status"][:3]), entry.get("resource") or entry["response"]["outcome"]
        if "async-given-up" in str(said):
            self.counts["given up by a proxy"] += 1
            return 503, said
        return status, said


def read(submission: Submission, status: int, said: JsonObject) -> list[Answer]:
    """Read the answer to each entry: a refusal of the whole is one of each."""
    if status != 200:
        return [Answer(entry, status, why=_why(said)) for entry in submission.entries]
    responses = [each["response"] for each in said["entry"]]
    return [_answer(entry, response) for entry, response in zip(submission.entries, responses, strict=True)]


def _answer(entry: Entry, response: JsonObject) -> Answer:
    place = _PLACE.search(response.get("location", ""))
    return Answer(entry, int(response["status"][:3]), place and place[1], _why(response.get("outcome", {})))


def _why(outcome: JsonObject) -> str:
    return "; ".join(issue["diagnostics"] for issue in outcome.get("issue", ()))


def _json(said: bytes) -> JsonObject:
    """Read an answer; the words of a server that failed (500) are kept as if it were an OperationOutcome."""
    try:
        return json.loads(said)
    except ValueError:
        return {"issue": [{"diagnostics": said[:200].decode(errors="replace")}]}
