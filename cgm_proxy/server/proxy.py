"""Wiring: from settings to two listening ports, rules that can be replaced, and an end that loses nothing."""

import asyncio
import errno
import gc
import logging
import os
import signal
from pathlib import Path
from threading import Thread

import aiohttp
from aiohttp import web

from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.http.header_fields import public_address
from cgm_proxy.core.rules.rulebook import RuleBook, RulesError
from cgm_proxy.jobs.job_queue import JobQueue
from cgm_proxy.observability import metrics
from cgm_proxy.observability.logs import log
from cgm_proxy.receiver.story import Receiver
from cgm_proxy.relay.http_options import SERVER_OPTIONS
from cgm_proxy.relay.relay import Relay
from cgm_proxy.rulekit.lint import load_linted
from cgm_proxy.server.async_status import AsyncStatus
from cgm_proxy.server.front_door import FrontDoor
from cgm_proxy.server.operations import ops_application, watch_lag
from cgm_proxy.server.peers import Peers
from cgm_proxy.settings.loading import Settings
from cgm_proxy.settings.schema import SettingsError
from cgm_proxy.upstream.client import UpstreamClient

#: Signals that ask for the rules to be read again; held back until there is a loop that hears them.
RELOADING = (signal.SIGHUP,)
#: Faults of rules that one log line names.
LOGGED = 20
#: Why one can't listen that another port mends; any other reason is the host's.
PORT_FAULTS = frozenset({errno.EADDRINUSE, errno.EACCES})


class Proxy:
    """A running proxy: `start` listens, `stop` finishes what is in flight; `port` and `ops_port` tell where it listens."""

    def __init__(self, settings: Settings, rules: RuleBook) -> None:
        self._settings = settings
        self._rules = rules
        self.port = settings.listen.port
        self.ops_port = settings.listen.ops_port

    async def start(self) -> None:
        """Listen on both ports; raises `SettingsError`, with all closed again, where that can't be."""
        settings = self._settings
        self._jobs = JobQueue.open(settings.jobs)
        self._relay = Relay(settings)
        await self._relay.start()
        metrics.expose_stream_stats(self._relay.traffic)
        self._session = _session(self._relay)
        public = self._relay.bases.public.url
        upstream = UpstreamClient(settings, self._session, self._relay.traffic)
        self._memory = memory = Cache(settings)
        await memory.start()
        self._receiver = Receiver(settings, upstream, self._rules, memory, self._relay.traffic)
        status = AsyncStatus(self._jobs, Peers(settings.jobs, self._session), upstream, public) if self._jobs else None
        self._handlers = FrontDoor(settings, self._relay, upstream, self._receiver, memory, status)
        self._server = web.Server(self._handlers, **SERVER_OPTIONS)
        patience = max(settings.listen.stop_timeout, 0.01)  # aiohttp takes 0 for ever
        self._public = web.ServerRunner(self._server, shutdown_timeout=patience)
        self._ops = web.AppRunner(ops_application(upstream, memory), access_log=None)
        listen = settings.listen
        try:
            self.port = await _listen(self._public, "", listen.host, listen.port)
            self.ops_port = await _listen(self._ops, "ops_", listen.ops_host, listen.ops_port)
        except SettingsError:
            await self._public.cleanup()
            await self._close()
            raise
        if self._jobs:
            await self._jobs.start(self._handlers.work)
        self._lag = asyncio.create_task(watch_lag())
        self.use(self._rules)
        profiles, rules = self._rules.size()
        log(
            "listening",
            port=self.port,
            ops_port=self.ops_port,
            mode=settings.mode,
            profiles=profiles,
            rules=rules,
        )

    def use(self, rules: RuleBook) -> None:
        """Judge by `rules` what begins from now on; a submission under way keeps those that it began with."""
        self._rules = self._receiver.rules = rules
        metrics.RULES.set(rules.size()[1])
        Thread(target=rules.warm, daemon=True).start()

    async def stop(self) -> None:
        """Stop listening, finish what is in flight within the time that is set for it, and close."""
        for site in list(self._public.sites):
            await site.stop()
        patience = self._settings.listen.stop_timeout
        hanging_up = asyncio.get_running_loop().call_later(patience, self._hang_up)
        jobs = [self._jobs.stop(patience)] if self._jobs else []
        _, finished, *_ = await asyncio.gather(self._public.cleanup(), self._handlers.drain(patience), *jobs)
        if not (await self._handlers.drain(0) and finished):  # one may have begun while its connection was finished
            log("stopped before all submissions were answered", logging.WARNING)
        hanging_up.cancel()
        self._lag.cancel()
        await self._close()

    async def _close(self) -> None:
        if self._jobs:
            await self._jobs.close()
        await self._ops.cleanup()
        await self._session.close()
        await self._memory.stop()
        await self._relay.close()

    def _hang_up(self) -> None:
        """End the connections of those who don't read: the server would wait as long for them once more."""
        for connection in self._server.connections:
            if connection.transport:
                connection.transport.abort()


async def serve(settings: Settings, rules: RuleBook) -> None:
    """Run until SIGTERM or SIGINT; read the rules again on SIGHUP."""
    proxy, stopped, changed = Proxy(settings, rules), asyncio.Event(), asyncio.Event()
    for number, event in ((signal.SIGTERM, stopped), (signal.SIGINT, stopped), (signal.SIGHUP, changed)):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    await proxy.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOADING)
    reloading = asyncio.create_task(_reload_when(changed, proxy, settings))
    await stopped.wait()
    log("stopping")
    reloading.cancel()
    await proxy.stop()
    log("stopped")


async def _reload_when(changed: asyncio.Event, proxy: Proxy, settings: Settings) -> None:
    while True:
        await changed.wait()
        changed.clear()
        await reload(proxy, settings)


async def reload(proxy: Proxy, settings: Settings) -> None:
    """Read all rules again, off the event loop, and use them; where one is faulty, say so and keep those in force."""
    try:
        rules = await asyncio.to_thread(load_rules, settings)
    except RulesError as error:
        metrics.RELOADS.labels("refused").inc()
        faults = str(error).splitlines()
        log("rules refused, the old ones stay in force", logging.ERROR, faults=faults[:LOGGED], count=len(faults))
        return
    proxy.use(rules)
    metrics.RELOADS.labels("replaced").inc()
    profiles, number = rules.size()
    log("rules replaced", profiles=profiles, rules=number)
    await asyncio.to_thread(gc.collect)  # the old ones hold themselves by circles, and the collector seldom comes


def shipped_rules() -> Path:
    """Give the directory of the rules that come with the program: inside an installed package, else beside it."""
    package = Path(__file__).parents[1]
    installed = package / "rules"
    return installed if installed.is_dir() else package.parent / "rules"


def load_rules(settings: Settings) -> RuleBook:
    """Load the shipped rules and the hospital's own; raises `RulesError` with every fault of the own ones, a line each."""
    return load_linted(shipped_rules(), *([Path(settings.rules)] if settings.rules else []))


def _session(relay: Relay) -> aiohttp.ClientSession:
    """Make the only ClientSession: no cookies, no environment, and where the public base is on every request."""
    headers = {name.decode(): value.decode() for name, value in public_address(relay.bases)}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        skip_auto_headers=("User-Agent",),
        trust_env=False,
    )


async def _listen(runner: web.BaseRunner, prefix: str, host: str, port: int) -> int:
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        name, cure = (
            ("port", "free it, or set another port")
            if error.errno in PORT_FAULTS
            else ("host", "set an address of this machine")
        )
        raise SettingsError(f"listen.{prefix}{name}: can't listen at {host}:{port}: {reason}; {cure}") from None
    address: tuple[str, int] = runner.addresses[0]
    return address[1]
