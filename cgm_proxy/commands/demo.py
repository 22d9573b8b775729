"""The demo: an embedded FHIR store, the proxy in front of it, and a submitter who posts two weeks of readings.

Everything that it prints comes from the running programs over HTTP, as it would for a submitter or an operations team.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from cgm_proxy.core.codec.bodies import CONTENT_TYPES
from cgm_proxy.core.codec.json_body import decode, encode
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.observability.logs import start as start_logs
from cgm_proxy.rulekit.lint import load_rules
from cgm_proxy.sandbox.simulation.submissions import Dialect, faulty_submission, patient, standing_orders, submission
from cgm_proxy.sandbox.store.app import make_app
from cgm_proxy.server.proxy import Proxy
from cgm_proxy.settings.loading import ListenSettings, Settings, UpstreamSettings

DIALECT: Dialect = "argo"
PATIENT = "Patient/example"
OTHER = "Patient/other"

#: Metrics that the demo prints, without the prefix `cgm_proxy_`.
METRICS = ("submissions_total", "duplicates_total", "refusals_total", "order_lookups_total", "chunks_total")

#: Ports of `demo --serve`, for the curl commands that it prints.
PORT, OPS_PORT = 8080, 9090

#: Width of the progress bar in characters.
BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class DemoClient:
    """A submitter's client. It uses the public base URL and need not know that there is a proxy."""

    session: aiohttp.ClientSession
    base: str

    async def send(self, method: str, path: str, resource: JsonObject | None = None) -> JsonObject:
        """Send a resource and return the one in the response."""
        data = encode(resource) if resource is not None else None
        headers = {"Content-Type": CONTENT_TYPES["json"]}
        async with self.session.request(method, self.base + path, data=data, headers=headers) as response:
            return decode(await response.read())

    async def count(self) -> int:
        """Return the number of the patient's stored observations."""
        bundle = await self.send("GET", f"/Observation?subject={PATIENT}&_summary=count")
        return int(bundle["total"])


async def demo(*, serve: bool) -> None:
    """Show the main job on the embedded store. With `serve`, keep it running afterwards until it is interrupted."""
    start_logs("error")
    store = web.AppRunner(make_app(), access_log=None)
    store_url = await _listen(store)
    public = f"http://localhost:{PORT}/fhir" if serve else "http://127.0.0.1/fhir"
    ports = (PORT, OPS_PORT) if serve else (0, 0)
    listen = ListenSettings(host="127.0.0.1", ops_host="127.0.0.1", port=ports[0], ops_port=ports[1], public_url=public)
    settings = Settings(listen=listen, upstream=UpstreamSettings(url=store_url))
    proxy = Proxy(settings, load_rules(settings.rules))
    await proxy.start()
    _print(
        f"cgm-proxy is running at http://127.0.0.1:{proxy.port}/fhir, in front of an embedded FHIR store at {store_url}."
    )
    try:
        async with aiohttp.ClientSession() as session:
            await _show(DemoClient(session, f"http://127.0.0.1:{proxy.port}/fhir"), proxy.ops_port)
        if serve:
            _print_commands_to_try(proxy)
            await asyncio.Event().wait()
    finally:
        await proxy.stop()
        await store.cleanup()
    _print("To try it with curl, run `cgm-proxy demo --serve`, which keeps running and prints some commands.")


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
    _print(
        f"\n1. The clinic has {PATIENT} and {len(orders)} standing orders: a summary and a PDF every 2 weeks, and readings."
    )


async def _post(submitter: DemoClient, bundle: JsonObject) -> None:
    _print(f"\n2. A submitter posts 14 days of data ({len(encode(bundle)) / 1e6:.1f} MB): {_contents(bundle)}.")
    observations = sum(entry["resource"]["resourceType"] == "Observation" for entry in bundle["entry"])
    started = time.perf_counter()
    response = asyncio.ensure_future(submitter.send("POST", "", bundle))
    while not response.done():
        if sys.stdout.isatty():
            _print_bar(await submitter.count(), observations)
        await asyncio.wait([response], timeout=0.2)
    _print_bar(await submitter.count(), observations)
    _print(f"\n   Response after {time.perf_counter() - started:.1f} s: {_statuses(response.result())}.")


async def _post_again(submitter: DemoClient, bundle: JsonObject) -> None:
    before = await submitter.count()
    started = time.perf_counter()
    response = await submitter.send("POST", "", bundle)
    _print("\n3. The submitter posts the same again, as after a lost connection.")
    _print(f"   Response after {time.perf_counter() - started:.1f} s: {_statuses(response)}.")
    location = response["entry"][1]["response"]["location"]
    _print(f"   It has the location of every resource that was already stored, for example {location}.")
    _print(f"   Observations stored: {before:,} before, {await submitter.count():,} after.")


async def _post_faulty(submitter: DemoClient) -> None:
    response = await submitter.send("POST", "", faulty_submission(DIALECT, PATIENT, OTHER))
    _print("\n4. The submitter posts a submission with faults.")
    _print(f"   Response: {_statuses(response)}. For each refused entry it says what is wrong:")
    for index, entry in enumerate(response["entry"]):
        if entry["response"]["status"] >= "4":
            for issue in entry["response"]["outcome"]["issue"]:
                rule = issue["details"]["coding"][0]["code"]
                _print(f"   entry {index}: {entry['response']['status']}\n     {rule} at {issue['expression'][0]}")
                _print(f"     {issue['diagnostics']}")


async def _show_metrics(session: aiohttp.ClientSession, ops_port: int) -> None:
    async with session.get(f"http://127.0.0.1:{ops_port}/metrics") as response:
        lines = (await response.text()).splitlines()
    _print("\n5. Some of the metrics that the operations team finds on /metrics:")
    for line in lines:
        if line.startswith(tuple(f"cgm_proxy_{name}" for name in METRICS)) and not line.endswith(" 0.0"):
            _print(f"   {line}")
    _print("")


def _print_commands_to_try(proxy: Proxy) -> None:
    base = f"http://localhost:{proxy.port}/fhir"
    _print("The demo keeps running until you press Ctrl-C. Commands to try:")
    _print(f"  curl -s '{base}/Observation?subject={PATIENT}&_count=1'")
    _print(f"  curl -s {base}/metadata | grep -o cgm-data-receiver")
    _print("  cgm-proxy demo --print-submission | sed 's/mg\\/dl/mg\\/dL/' > faulty.json")
    _print(f"  curl -s -H 'Content-Type: application/fhir+json' --data-binary @faulty.json {base}")
    _print(f"  curl -s http://localhost:{proxy.ops_port}/metrics")


def print_submission() -> None:
    """Print a small conformant submission for the demo's patient."""
    bundle = submission(DIALECT, PATIENT, readings=3)
    json.dump(json.loads(encode(bundle)), sys.stdout, indent=1)


def _contents(bundle: JsonObject) -> str:
    profiles = Counter(entry["resource"]["meta"]["profile"][0].rpartition("/cgm-")[2] for entry in bundle["entry"])
    readings = profiles["sensor-reading-mass"]
    return f"{readings:,} readings, a summary with its {len(profiles) - 4} members, a PDF report and the device"


def _statuses(response: JsonObject) -> str:
    counts = Counter(entry["response"]["status"] for entry in response["entry"])
    return ", ".join(f"{count:,} x {status}" for status, count in counts.items())


def _print_bar(done: int, total: int) -> None:
    filled = BAR_WIDTH * done // max(total, 1)
    _print(f"\r   [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done:,} of {total:,} observations stored", end="")


def _print(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


async def _listen(runner: web.AppRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/fhir"
