"""The operations port: metrics, liveness and readiness; never exposed publicly."""

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cgm_proxy.cache.cache import Cache
from cgm_proxy.observability.metrics import LOOP_LAG, REGISTRY
from cgm_proxy.upstream.client import UpstreamClient

#: How often the event loop's lag is measured, seconds.
LAG_EVERY = 1.0


def ops_application(upstream: UpstreamClient, memory: Cache) -> web.Application:
    """Make the application of the operations port."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        ready = await upstream.ready()
        status = {"status": "ok" if ready else "upstream unreachable"}
        away = {} if memory.available else {"shared memory": "away"}  # all is right without it, only slower
        return web.json_response(status | away, status=200 if ready else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return application


async def watch_lag() -> None:
    """Measure how late the event loop is, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY
        await asyncio.sleep(LAG_EVERY)
        LOOP_LAG.set(loop.time() - due)
