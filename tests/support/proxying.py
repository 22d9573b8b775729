"""A real proxy in the process of the test, between a client and a scripted upstream."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any
from uuid import uuid4

import aiohttp
from support.client import JSON, Client, Response
from support.fake_upstream import FakeUpstream, fake_upstream, searches

from cgm_proxy.core.codec.json_body import encode
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.rulekit.lint import load_rules
from cgm_proxy.sandbox.simulation.submissions import patient, standing_orders, submission
from cgm_proxy.server.proxy import Proxy
from cgm_proxy.settings.loading import load

OTHER = "Patient/other"

#: A system of identifiers whose URI contains a question mark, which also begins a query.
SYSTEM = "http://x.org/a?b"


@cache
def rules() -> RuleBook:
    return load_rules()


@dataclass
class World:
    """The proxy, its client and its upstream; `ask_store` bypasses the faults that `fake` can simulate."""

    fake: FakeUpstream
    proxy: Proxy
    session: aiohttp.ClientSession
    about: str = "Patient/p1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}/fhir"

    async def request(self, method: str, path: str = "", body: Any = None, **headers: str) -> Response:
        return await self._request(self.url, method, path, body, headers)

    async def ask_store(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        return await self._request(self.fake.store, method, path, body, headers)

    async def _request(self, base: str, method: str, path: str, body: Any, headers: dict[str, str]) -> Response:
        url = f"{base}/{path}" if path and not path.startswith("?") else base + path
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            fields = {"Content-Type": JSON} | fields
            body = BytesIO(body if isinstance(body, bytes) else encode(body))
        async with self.session.request(
            method, url, data=body, headers=fields, allow_redirects=False, skip_auto_headers=("User-Agent",)
        ) as answer:
            return Response(answer.status, answer.headers, await answer.read())

    async def submit(self, bundle: Any, dialect: str = "argo", **headers: str) -> Response:
        return await self.request("POST", Client.submission_path(dialect), bundle, **headers)

    async def stored(self, kind: str = "Observation", about: str = "") -> list[dict[str, Any]]:
        """Return the stored resources of a type about a patient, by default the world's own."""
        name = "patient" if kind == "Device" else "subject"
        answer = await self.ask_store(
            "GET", f"{kind}?{name}={about or self.about}&_count=5000", Cache_Control="no-cache"
        )
        return [entry["resource"] for entry in answer.body.get("entry", ())]

    async def count(self, kind: str = "Observation", about: str = "") -> int:
        return len(await self.stored(kind, about))

    async def put(self, resource: dict[str, Any]) -> None:
        path = f"{resource['resourceType']}/{resource['id']}"
        assert (await self.ask_store("PUT", path, resource)).status in {200, 201}

    async def order(self, dialect: str = "argo") -> None:
        """Store the patient's standing orders."""
        for order in standing_orders(dialect, self.about):
            await self.put(order)

    async def metrics(self) -> str:
        async with self.session.get(f"http://127.0.0.1:{self.proxy.ops_port}/metrics") as answer:
            return await answer.text()

    def readings(self, number: int, **more: Any) -> dict[str, Any]:
        """Return a submission of readings alone, about the world's own patient."""
        options = {"summary": False, "pdf": False, "device": False} | more
        return submission(options.pop("dialect", "argo"), self.about, readings=number, **options)


@asynccontextmanager
async def proxying(**settings: Any) -> AsyncIterator[World]:
    """Run a proxy with `settings` (`upstream__retries=1`) in front of a fake upstream that has two patients."""
    async with fake_upstream() as fake, aiohttp.ClientSession() as session:
        given = {"upstream__url": fake.url, "upstream__connect_timeout": 5, "upstream__read_timeout": 20}
        given |= {
            "listen__host": "127.0.0.1",
            "listen__ops_host": "127.0.0.1",
            "listen__port": 0,
            "listen__ops_port": 0,
        }
        environ = {
            f"CGM_PROXY_{key.upper().replace('__', '_')}": str(value) for key, value in {**given, **settings}.items()
        }
        proxy = Proxy(load(environ=environ), rules())
        await proxy.start()
        world = World(fake, proxy, session, f"Patient/p{uuid4().hex[:10]}")
        for reference in (world.about, OTHER):
            await world.put(patient(reference.rpartition("/")[2]))
        try:
            yield world
        finally:
            await proxy.stop()


async def unprobed(world: World) -> str:
    """Store 40 readings, and return the reference of one that the proxy does not look up before it trusts the cache."""
    stored = locations(await world.submit(world.readings(40)))
    await world.submit(world.readings(40))
    probed = world.fake.received(searches("Observation"))[-1].form["identifier"]
    for location in map(str, stored):
        reference = location.partition("/_history")[0]
        identity = (await world.ask_store("GET", reference)).body["identifier"][-1]["value"]
        if identity not in str(probed):
            return reference
    raise AssertionError("all were looked up")


def statuses(answer: Response) -> list[int]:
    assert answer.status == 200, answer.data
    return [int(entry["response"]["status"][:3]) for entry in answer.body["entry"]]


def counted(answer: Response) -> dict[int, int]:
    return dict(Counter(statuses(answer)))


def locations(answer: Response) -> list[str | None]:
    return [entry["response"].get("location") for entry in answer.body["entry"]]


def entry_rules(answer: Response, index: int = 0) -> list[str]:
    """Return the ids of the rules in an entry's OperationOutcome."""
    outcome = answer.body["entry"][index]["response"].get("outcome", {"issue": []})
    return [issue["details"]["coding"][0]["code"] for issue in outcome["issue"] if "details" in issue]


def untagged(bundle: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bundle.items() if name != "meta"}


async def metric(world: World, name: str, **labels: str) -> float:
    """Return a metric's value, summed over the matching series; 0 if there is none."""
    found = 0.0
    for line in (await world.metrics()).splitlines():
        if line.startswith(f"cgm_proxy_{name}") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            found += float(line.rpartition(" ")[2])
    return found


def observation(name: str, about: str, *values: str, system: str | None = SYSTEM) -> dict[str, Any]:
    given = {"system": system} if system else {}
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": about},
        "effectiveDateTime": "2024-05-01T10:00:00Z",
        "identifier": [{**given, "value": value} for value in values],
    }
