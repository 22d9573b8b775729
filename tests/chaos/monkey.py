"""The faults of a run: it kills processes at random moments, suspends others for a while, and cuts connections."""

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from random import Random
from subprocess import Popen
from urllib.parse import urlsplit

from support.cutting import CuttingRelay, Point
from support.servers import Running

#: Relative frequency of the kills of each kind of server. HAPI needs most of a minute to start again.
SHARES = {"proxy": 10, "valkey": 4, "store": 4, "hapi": 1}

#: Longest pauses before a kill, a restart, a cut connection, and a suspension or flush (seconds).
BEFORE_KILL = 5.0
BEFORE_RESTART = 1.0
BEFORE_CUT = 1.5
BEFORE_SUSPENSION = 20.0

#: Longest suspension of a process (seconds), as by a machine without free memory, or by a debugger.
SUSPENDED = 6.0

#: Delays of late requests and responses (seconds). The longest is longer than the proxies wait for a response.
DELAYS = (0.5, 3.0, 12.0)

#: Longest wait until a server that is to be killed has work (seconds).
IDLE = 30.0


@dataclass(frozen=True)
class Victim:
    """A server that may be killed; `busy` returns the number of submissions or transactions that it works on."""

    kind: str
    server: Running
    busy: Callable[[], int]


@dataclass
class Monkey:
    """Kills and suspends servers, flushes Valkey and cuts connections.

    `killed` counts the kills by kind of server, `vexed` the suspensions and flushes.
    """

    random: Random
    victims: Sequence[Victim]
    relay: CuttingRelay
    killed: Counter[str] = field(default_factory=Counter)
    vexed: Counter[str] = field(default_factory=Counter)
    _restarts: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    async def rage(self, kills: int, seconds: float) -> None:
        """Kill servers that often, or as often as there is time for. At the end all servers are running."""
        others = [asyncio.create_task(self._cut()), asyncio.create_task(self._suspend_or_flush())]
        try:
            async with asyncio.timeout(seconds):
                for kind in self._kinds(kills):
                    await self._kill(self.random.choice([victim for victim in self.victims if victim.kind == kind]))
        except TimeoutError:
            pass  # the report has the number of kills
        finally:
            for other in others:
                other.cancel()
            self.relay.pending.clear()
            await asyncio.gather(*self._restarts.values())
            await asyncio.gather(*others, return_exceptions=True)

    def _kinds(self, kills: int) -> list[str]:
        """Return the kinds of servers to kill, in random order and with the frequencies of `SHARES`."""
        present = {victim.kind for victim in self.victims}
        evenly = sorted(
            ((n + 0.5) / share, kind) for kind, share in SHARES.items() if kind in present for n in range(share)
        )
        kinds = list(islice(cycle(kind for _, kind in evenly), kills))
        self.random.shuffle(kinds)
        return kinds

    async def _kill(self, victim: Victim) -> None:
        """Kill a server at a random moment when it has work, and restart it. Wait only until HAPI has started again."""
        await asyncio.sleep(self.random.uniform(0, BEFORE_KILL))
        await self._running_again(victim)
        if not await self._wait_until_busy(victim):
            return
        victim.server.kill()
        self.killed[victim.kind] += 1
        self._restarts[id(victim)] = asyncio.create_task(
            self._restart(victim.server, self.random.uniform(0, BEFORE_RESTART))
        )
        if victim.kind == "hapi":
            await self._running_again(victim)

    async def _wait_until_busy(self, victim: Victim) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE):
                while not victim.busy():  # noqa: ASYNC110 -- the moment of the kill is to be random
                    await asyncio.sleep(self.random.uniform(0, 0.1))
                return True
        return False

    async def _running_again(self, victim: Victim) -> None:
        if restart := self._restarts.get(id(victim)):
            await asyncio.shield(restart)

    async def _restart(self, server: Running, pause: float) -> None:
        await asyncio.sleep(pause)
        await asyncio.to_thread(server.start)

    async def _cut(self) -> None:
        """Cut connections or delay responses, at all points of an exchange in turn."""
        while True:
            for point in self.random.sample(list(Point), len(Point)):
                if not self.relay.pending:
                    self.relay.pending.append((point, self.random.choice(DELAYS)))
                await asyncio.sleep(self.random.uniform(0, BEFORE_CUT))

    async def _suspend_or_flush(self) -> None:
        """Suspend a proxy or Valkey for a while, after which it continues with its old state; or flush Valkey."""
        while True:
            await asyncio.sleep(self.random.uniform(0, BEFORE_SUSPENSION))
            victim = self.random.choice([victim for victim in self.victims if victim.kind in {"proxy", "valkey"}])
            if victim.kind == "valkey" and self.random.random() < 0.5:
                self.vexed["valkey flushed"] += await asyncio.to_thread(_flush, victim.server.url)
            else:
                self.vexed[f"{victim.kind} stopped"] += 1
                await self._suspend(victim.server.process)

    async def _suspend(self, process: Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self.random.uniform(0, SUSPENDED))
        finally:
            process.send_signal(signal.SIGCONT)


def _flush(url: str) -> bool:
    """Delete everything in a Valkey; return whether that worked."""
    address = urlsplit(url)
    with suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=1) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        return connection.recv(16).startswith(b"+OK")
    return False
