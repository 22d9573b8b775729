"""Wiring: from settings to two listening ports, and an end that loses nothing."""

import asyncio
import logging
import signal
from pathlib import Path

import aiohttp
from aiohttp import web

from cgm_proxy import metrics
from cgm_proxy.core.rules import RuleBook
from cgm_proxy.express import ExpressServer
from cgm_proxy.handlers import Handlers
from cgm_proxy.logs import log
from cgm_proxy.memory import Memory
from cgm_proxy.ops import ops_application, watch_lag
from cgm_proxy.relay import Relay
from cgm_proxy.settings import Settings
from cgm_proxy.submission import Submissions
from cgm_proxy.upstream import Upstream
from cgm_proxy.wire import SERVER_OPTIONS


class Proxy:
    """A running proxy: `start` listens, `stop` finishes what is in flight; `port` and `ops_port` tell where it listens."""

    def __init__(self, settings: Settings, rules: RuleBook) -> None:
        self._settings = settings
        self._rules = rules
        self.port = settings.listen.port
        self.ops_port = settings.listen.ops_port

    async def start(self) -> None:
        """Listen on both ports; raises `OSError` where one is taken."""
        settings = self._settings
        self._relay = Relay(settings)
        await self._relay.start()
        metrics.show_traffic(self._relay.traffic)
        self._session = _session(self._relay)
        upstream = Upstream(settings, self._session)
        memory = Memory(settings.cache)
        submissions = Submissions(settings, upstream, self._rules, memory)
        self._handlers = Handlers(settings, self._relay, upstream, submissions, memory)
        server = ExpressServer(self._handlers, self._relay, self._handlers.streams, **SERVER_OPTIONS)
        patience = max(settings.listen.stop_timeout, 0.01)  # aiohttp takes 0 for ever
        self._public = web.ServerRunner(server, shutdown_timeout=patience)
        self._ops = web.AppRunner(ops_application(upstream), access_log=None)
        listen = settings.listen
        self.port = await _listen(self._public, listen.host, listen.port)
        self.ops_port = await _listen(self._ops, listen.ops_host, listen.ops_port)
        self._lag = asyncio.create_task(watch_lag())
        log("listening", port=self.port, ops_port=self.ops_port, mode=settings.mode, profiles=len(self._rules.profiles))

    async def stop(self) -> None:
        """Stop listening, finish what is in flight within the time that is set for it, and close."""
        for site in list(self._public.sites):
            await site.stop()
        _, finished = await asyncio.gather(
            self._public.cleanup(), self._handlers.drain(self._settings.listen.stop_timeout)
        )
        if not (await self._handlers.drain(0) and finished):  # one may have begun while its connection was finished
            log("stopped before all submissions were answered", logging.WARNING)
        self._lag.cancel()
        await self._ops.cleanup()
        await self._session.close()
        await self._relay.close()


async def serve(settings: Settings, rules: RuleBook) -> None:
    """Run until SIGTERM or SIGINT."""
    proxy = Proxy(settings, rules)
    await proxy.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    log("stopping")
    await proxy.stop()
    log("stopped")


def shipped_rules() -> Path:
    """Give the directory of the rules that come with the program: inside an installed package, else beside it."""
    package = Path(__file__).parent
    installed = package / "rules"
    return installed if installed.is_dir() else package.parent / "rules"


def load_rules(settings: Settings) -> RuleBook:
    """Load the shipped rules and the hospital's own."""
    return RuleBook.load(shipped_rules(), *([Path(settings.rules)] if settings.rules else []))


def _session(relay: Relay) -> aiohttp.ClientSession:
    """Make the only ClientSession: no cookies, no environment, and where the public base is on every request."""
    public, upstream = relay.bases.public, relay.bases.upstream
    headers = {
        "X-Forwarded-Host": public.authority,
        "X-Forwarded-Proto": public.scheme,
        "X-Forwarded-Port": str(public.port),
    }
    if public.path != upstream.path:
        headers["X-Forwarded-Prefix"] = public.path
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        skip_auto_headers=("User-Agent",),
        trust_env=False,
    )


async def _listen(runner: web.BaseRunner, host: str, port: int) -> int:
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    address: tuple[str, int] = runner.addresses[0]
    return address[1]
