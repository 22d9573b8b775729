"""The demo: an embedded FHIR store, the proxy before it, and a submitter who posts two weeks of readings.

Everything it shows is asked of the running programs over HTTP, as a submitter and an ops team would.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import web

from cgm_proxy.core.codec.json_body import CONTENT_TYPES, decode, encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.observability.logs import start as start_logs
from cgm_proxy.sandbox.simulation.submissions import Dialect, faulty_submission, patient, standing_orders, submission
from cgm_proxy.sandbox.store.app import make_app
from cgm_proxy.server.proxy import Proxy, load_rules
from cgm_proxy.settings.loading import ListenSettings, Settings, UpstreamSettings

DIALECT: Dialect = "argo"
PATIENT = "Patient/example"
OTHER = "Patient/other"

#: Metrics that the demo shows, without their `cgm_proxy_`.
SHOWN = ("submissions_total", "duplicates_total", "refusals_total", "order_lookups_total", "chunks_total")

#: Where the demo listens, so that its curl lines can be copied.
PORT, OPS_PORT = 8080, 9090

#: Characters of the progress bar.
BAR = 40


@dataclass(frozen=True, slots=True)
class DemoClient:
    """A submitter's client: it posts to the public base and knows nothing of the proxy."""

    session: aiohttp.ClientSession
    base: str

    async def send(self, method: str, path: str, resource: JsonObject | None = None) -> JsonObject:
        """Send a resource and give the answer's, which is never a refusal of the whole request here."""
        data = encode(resource) if resource is not None else None
        headers = {"Content-Type": CONTENT_TYPES["json"]}
        async with self.session.request(method, self.base + path, data=data, headers=headers) as response:
            return decode(await response.read())

    async def count(self) -> int:
        """Count the patient's stored observations."""
        found = await self.send("GET", f"/Observation?subject={PATIENT}&_summary=count")
        return int(found["total"])


async def demo(*, serve: bool) -> None:
    """Show the main job on the embedded store; with `serve`, keep it running afterwards until it is interrupted."""
    start_logs("error")
    store = web.AppRunner(make_app(), access_log=None)
    store_url = await _listen(store)
    public = f"http://localhost:{PORT}/fhir" if serve else "http://127.0.0.1/fhir"
    ports = (PORT, OPS_PORT) if serve else (0, 0)
    listen = ListenSettings(host="127.0.0.1", ops_host="127.0.0.1", port=ports[0], ops_port=ports[1], public_url=public)
    settings = replace(Settings(), listen=listen, upstream=UpstreamSettings(url=store_url))
    proxy = Proxy(settings, load_rules(settings))
    await proxy.start()
    _say(f"An embedded FHIR store is up at {store_url}, and cgm-proxy before it at http://127.0.0.1:{proxy.port}/fhir.")
    try:
        async with aiohttp.ClientSession() as session:
            await _show(DemoClient(session, f"http://127.0.0.1:{proxy.port}/fhir"), proxy.ops_port)
        if serve:
            _say_how_to_go_on(proxy)
            await asyncio.Event().wait()
    finally:
        await proxy.stop()
        await store.cleanup()
    _say("`cgm-proxy demo --serve` keeps it running and tells what to try with curl.")


async def _show(submitter: DemoClient, ops_port: int) -> None:
    await _load_orders(submitter)
    bundle = submission(DIALECT, PATIENT)
    await _post(submitter, bundle)
    await _post_again(submitter, bundle)
    await _post_faulty(submitter)
    await _show_metrics(submitter.session, ops_port)


async def _load_orders(submitter: DemoClient) -> None:
    for name in (PATIENT, OTHER):
        await submitter.send("PUT", f"/{name}", patient(name.partition("/")[2]))
    orders = standing_orders(DIALECT, PATIENT)
    for order in orders:
        await submitter.send("PUT", f"/ServiceRequest/{order['id']}", order)
    _say(f"\n1. The clinic has {PATIENT} and {len(orders)} standing orders: summary and PDF every 2 weeks; readings.")


async def _post(submitter: DemoClient, bundle: JsonObject) -> None:
    _say(f"\n2. A submitter posts 14 days: {_contents(bundle)}; {len(encode(bundle)) / 1e6:.1f} MB.")
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    started = time.perf_counter()
    answer = asyncio.ensure_future(submitter.send("POST", "", bundle))
    while not answer.done():
        if sys.stdout.isatty():
            _bar(await submitter.count(), observations)
        await asyncio.wait([answer], timeout=0.2)
    _bar(await submitter.count(), observations)
    _say(f"\n   answered in {time.perf_counter() - started:.1f} s: {_statuses(answer.result())}")


async def _post_again(submitter: DemoClient, bundle: JsonObject) -> None:
    before = await submitter.count()
    started = time.perf_counter()
    answer = await submitter.send("POST", "", bundle)
    _say(
        f"\n3. The same again, as after a lost connection: {_statuses(answer)}, in {time.perf_counter() - started:.1f} s."
    )
    first = answer["entry"][1]["response"]
    _say(f"   Each answer names what is stored already, for example {first['location']}.")
    _say(f"   Observations stored: {before:,} before, {await submitter.count():,} after.")


async def _post_faulty(submitter: DemoClient) -> None:
    answer = await submitter.send("POST", "", faulty_submission(DIALECT, PATIENT, OTHER))
    _say(f"\n4. A submission with faults: {_statuses(answer)}. What the submitter is told:")
    for index, entry in enumerate(answer["entry"]):
        if entry["response"]["status"] >= "4":
            for issue in entry["response"]["outcome"]["issue"]:
                rule = issue["details"]["coding"][0]["code"]
                _say(f"   entry {index}: {entry['response']['status']}\n     {rule} at {issue['expression'][0]}")
                _say(f"     {issue['diagnostics']}")


async def _show_metrics(session: aiohttp.ClientSession, ops_port: int) -> None:
    async with session.get(f"http://127.0.0.1:{ops_port}/metrics") as response:
        lines = (await response.text()).splitlines()
    _say("\n5. What the ops team sees on /metrics, among others:")
    for line in lines:
        if line.startswith(tuple(f"cgm_proxy_{name}" for name in SHOWN)) and not line.endswith(" 0.0"):
            _say(f"   {line}")
    _say("")


def _say_how_to_go_on(proxy: Proxy) -> None:
    base = f"http://localhost:{proxy.port}/fhir"
    _say("It keeps running (Ctrl-C stops it). Try:")
    _say(f"  curl -s '{base}/Observation?subject={PATIENT}&_count=1'")
    _say(f"  curl -s {base}/metadata | grep -o cgm-data-receiver")
    _say("  cgm-proxy demo --print-submission | sed 's/mg\\/dl/mg\\/dL/' > faulty.json")
    _say(f"  curl -s -H 'Content-Type: application/fhir+json' --data-binary @faulty.json {base}")
    _say(f"  curl -s http://localhost:{proxy.ops_port}/metrics")


def print_submission() -> None:
    """Write a small conformant submission for the demo's patient to standard output."""
    bundle = submission(DIALECT, PATIENT, readings=3)
    json.dump(json.loads(encode(bundle)), sys.stdout, indent=1)


def _contents(bundle: JsonObject) -> str:
    kinds = Counter(entry["resource"]["meta"]["profile"][0].rpartition("/cgm-")[2] for entry in bundle["entry"])
    readings = kinds["sensor-reading-mass"]
    return f"{readings:,} readings, a summary with its {len(kinds) - 4} members, a PDF report and the device"


def _statuses(answer: JsonObject) -> str:
    counted = Counter(entry["response"]["status"] for entry in answer["entry"])
    return ", ".join(f"{number:,} x {status}" for status, number in counted.items())


def _bar(done: int, total: int) -> None:
    filled = BAR * done // max(total, 1)
    _say(f"\r   [{'#' * filled}{'.' * (BAR - filled)}] {done:,} of {total:,} stored", end="")


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


async def _listen(runner: web.AppRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/fhir"
