"""The operations port: metrics, liveness and readiness. It must not be reachable from outside."""

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cgm_proxy.cache.cache import Cache
from cgm_proxy.observability.metrics import LOOP_LAG, REGISTRY
from cgm_proxy.upstream.client import UpstreamClient

#: Time between two measurements of the event loop's lag (seconds).
LAG_INTERVAL = 1.0


def ops_application(upstream: UpstreamClient, cache: Cache) -> web.Application:
    """Return the application of the operations port."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        ready = await upstream.ready()
        status = {"status": "ok" if ready else "upstream unreachable"}
        if not cache.available:  # the proxy is ready all the same, only slower
            status["shared memory"] = "away"
        return web.json_response(status, status=200 if ready else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return application


async def watch_lag() -> None:
    """Measure how late the event loop runs, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        LOOP_LAG.set(loop.time() - due)
