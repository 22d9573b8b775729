"""Wiring: from settings to two listening ports, reloads of the rules, and a stop that loses no submission."""

import asyncio
import errno
import gc
import logging
import os
import signal
from contextlib import suppress
from threading import Thread

import aiohttp
from aiohttp import web

from cgm_proxy.cache.cache import Cache
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.http.base_urls import BaseUrls
from cgm_proxy.core.http.header_fields import public_address
from cgm_proxy.core.rules.rule_files import RulesError
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.jobs.job_queue import JobQueue
from cgm_proxy.jobs.worker import Worker
from cgm_proxy.observability import metrics
from cgm_proxy.observability.logs import log
from cgm_proxy.receiver.intake import Intake
from cgm_proxy.receiver.parsing import BodyParser
from cgm_proxy.receiver.story import Receiver
from cgm_proxy.relay.relay import Relay
from cgm_proxy.rulekit.lint import load_rules
from cgm_proxy.server.async_status import AsyncStatus
from cgm_proxy.server.connections import PublicServer, connection_limit
from cgm_proxy.server.fhir_responses import FhirResponses
from cgm_proxy.server.front_door import FrontDoor
from cgm_proxy.server.operations import ops_application, watch_lag
from cgm_proxy.server.peers import Replicas
from cgm_proxy.settings.loading import Settings
from cgm_proxy.settings.schema import SettingsError
from cgm_proxy.upstream.client import UpstreamClient

#: Signals for which the rules are read again; the command line blocks them until there is a handler.
RELOADING = (signal.SIGHUP,)
#: Most faults of rules in one log line.
LOGGED_FAULTS = 20
#: Reasons why listening fails that another port cures; any other reason is the host's.
PORT_FAULTS = frozenset({errno.EADDRINUSE, errno.EACCES})


class Proxy:
    """A running proxy. `start` begins to listen at `port` and `ops_port`; `stop` finishes what is in flight."""

    def __init__(self, settings: Settings, rules: RuleBook) -> None:
        self._settings = settings
        self._rules = rules
        self.port = settings.listen.port
        self.ops_port = settings.listen.ops_port

    async def start(self) -> None:
        """Listen on both ports; raises `SettingsError`, with everything closed again, if one can't be used."""
        settings, listen = self._settings, self._settings.listen
        limit = connection_limit(listen.connections)
        self._jobs = JobQueue.open(settings.jobs)
        self._relay = relay = Relay(settings)
        await relay.start()
        metrics.expose_stream_stats(relay.stats)
        self._session = _session(relay.bases)
        upstream = UpstreamClient(settings, self._session, relay.stats)
        self._cache = Cache(settings)
        await self._cache.start()
        self._receiver = Receiver(settings, upstream, self._rules, self._cache, relay.stats)
        xml = FhirXml(self._rules.model(None), settings.limits.depth)
        intake = Intake(settings, BodyParser(settings, xml, relay.stats), self._receiver)
        responses = FhirResponses(xml)
        async_status = None
        if self._jobs:
            replicas = Replicas(settings.jobs, self._session)
            async_status = AsyncStatus(self._jobs, replicas, upstream, responses, relay.bases.public.url)
        self._front_door = FrontDoor(settings, relay, upstream, intake, self._cache, xml, responses, async_status)
        self._server = PublicServer(self._front_door, listen, limit)
        shutdown_timeout = max(listen.stop_timeout, 0.01)  # aiohttp waits without limit for 0
        self._public = web.ServerRunner(self._server, shutdown_timeout=shutdown_timeout)
        self._ops = web.AppRunner(ops_application(upstream, self._cache), access_log=None, keepalive_timeout=75)
        try:
            self.port = await _listen(self._public, "", listen.host, listen.port)
            self.ops_port = await _listen(self._ops, "ops_", listen.ops_host, listen.ops_port)
        except SettingsError:
            await self._public.cleanup()
            await self._close()
            raise
        if self._jobs:
            await self._jobs.start(Worker(intake).work)
        self._lag = asyncio.create_task(watch_lag())
        self._sweeping = asyncio.create_task(self._server.sweep())
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
        """Judge by `rules` from now on; a submission in flight keeps the rules with which it began."""
        self._rules = self._receiver.rules = rules
        self._front_door.profiles = rules.supported(self._settings.allow)
        metrics.RULES.set(rules.size()[1])
        Thread(target=rules.warm, daemon=True).start()

    async def stop(self) -> None:
        """Stop listening, finish what is in flight within `listen.stop_timeout`, and close everything."""
        for site in list(self._public.sites):
            await site.stop()
        seconds = self._settings.listen.stop_timeout
        aborting = asyncio.get_running_loop().call_later(seconds, self._abort_connections)
        jobs = [self._jobs.stop(seconds)] if self._jobs else []
        _, finished, *_ = await asyncio.gather(self._public.cleanup(), self._front_door.drain(seconds), *jobs)
        # One more may have begun while the last connections were finished.
        if not (await self._front_door.drain(0) and finished):
            log("stopped before all submissions were answered", logging.WARNING)
        aborting.cancel()
        self._lag.cancel()
        self._sweeping.cancel()
        await self._close()

    async def _close(self) -> None:
        if self._jobs:
            await self._jobs.close()
        await self._ops.cleanup()
        await self._session.close()
        await self._cache.stop()
        await self._relay.close()

    def _abort_connections(self) -> None:
        """Abort the connections of clients that don't read: aiohttp would wait for them a second time."""
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
    """Read all rules again, in a thread, and use them; if one is faulty, log it and keep the rules in force."""
    try:
        rules = await _load_beside(settings)
    except RulesError as error:
        metrics.RELOADS.labels("refused").inc()
        faults = str(error).splitlines()
        log(
            "rules refused, the old ones stay in force",
            logging.ERROR,
            faults=faults[:LOGGED_FAULTS],
            count=len(faults),
        )
        return
    proxy.use(rules)
    metrics.RELOADS.labels("replaced").inc()
    profiles, number = rules.size()
    log("rules replaced", profiles=profiles, rules=number)
    await asyncio.to_thread(gc.collect)  # the old rules are in reference cycles, and the collector seldom runs


async def _load_beside(settings: Settings) -> RuleBook:
    """Load the rules in a thread that does not keep the process from ending, however long it takes; raises `RulesError`."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[RuleBook] = loop.create_future()

    def load() -> None:
        outcome: RuleBook | Exception
        try:
            outcome = load_rules(settings.rules)
        except Exception as error:  # noqa: BLE001 -- it is raised where the rules are awaited
            outcome = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    def settle(outcome: RuleBook | Exception) -> None:
        if loaded.cancelled():
            return
        if isinstance(outcome, Exception):
            loaded.set_exception(outcome)
        else:
            loaded.set_result(outcome)

    Thread(target=load, daemon=True).start()
    return await loaded


def _session(bases: BaseUrls) -> aiohttp.ClientSession:
    """Return the only ClientSession: without cookies and environment, and with the public address on every request."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={name.decode(): value.decode() for name, value in public_address(bases)},
        skip_auto_headers=("User-Agent",),
        trust_env=False,
    )


async def _listen(runner: web.BaseRunner, prefix: str, host: str, port: int) -> int:
    """Listen at a host and port, and return the port; raises `SettingsError` that names the setting and the cure."""
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
