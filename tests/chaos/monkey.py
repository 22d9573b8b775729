"""What goes wrong in a run: processes are killed at random moments, others only stop for a while, connections are cut."""

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

#: How often each kind of server is killed, against the others. HAPI takes most of a minute to start again.
SHARES = {"proxy": 10, "valkey": 4, "store": 4, "hapi": 1}

#: Longest pauses: before a kill, before a restart, between two disturbances of connections, between two vexations (seconds).
BEFORE_KILL = 5.0
BEFORE_RESTART = 1.0
BEFORE_DISTURBANCE = 1.5
BEFORE_VEXATION = 20.0

#: Longest time for which a process is stopped that is not killed (seconds), as a machine without memory or a debugger does.
STOPPED = 6.0

#: By how much is late or held up what comes later (seconds); the longest is longer than the proxies wait for an answer.
LATER = (0.5, 3.0, 12.0)

#: How long to wait for a moment when a server that is to be killed has work (seconds).
IDLE = 30.0


@dataclass(frozen=True)
class Victim:
    """A server that may be killed; `busy` tells how many submissions or transactions it has to do with."""

    kind: str
    server: Running
    busy: Callable[[], int]


@dataclass
class Monkey:
    """Kills, stops, flushes and cuts; `killed` counts by kind of server, `vexed` all that is no kill and no cut."""

    random: Random
    victims: Sequence[Victim]
    relay: CuttingRelay
    killed: Counter[str] = field(default_factory=Counter)
    vexed: Counter[str] = field(default_factory=Counter)
    _restarts: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    async def rage(self, kills: int, seconds: float) -> None:
        """Kill that often, or as often as there is time for; at the end all servers run."""
        others = [asyncio.create_task(self._disturb()), asyncio.create_task(self._vex())]
        try:
            async with asyncio.timeout(seconds):
                for kind in self._kinds(kills):
                    await self._kill(self.random.choice([victim for victim in self.victims if victim.kind == kind]))
        except TimeoutError:
            pass  # the report says how many there were
        finally:
            for other in others:
                other.cancel()
            self.relay.wanted.clear()
            await asyncio.gather(*self._restarts.values())
            await asyncio.gather(*others, return_exceptions=True)

    def _kinds(self, kills: int) -> list[str]:
        """Give what kind is killed when: their shares are kept, their order is random."""
        present = {victim.kind for victim in self.victims}
        evenly = sorted(
            ((n + 0.5) / share, kind) for kind, share in SHARES.items() if kind in present for n in range(share)
        )
        kinds = list(islice(cycle(kind for _, kind in evenly), kills))
        self.random.shuffle(kinds)
        return kinds

    async def _kill(self, victim: Victim) -> None:
        """Kill a server at a random moment when it has work, and have it started again; HAPI's start is waited for."""
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
                while not victim.busy():  # noqa: ASYNC110 -- a moment between two looks is what is wanted
                    await asyncio.sleep(self.random.uniform(0, 0.1))
                return True
        return False

    async def _running_again(self, victim: Victim) -> None:
        if restart := self._restarts.get(id(victim)):
            await asyncio.shield(restart)

    async def _restart(self, server: Running, pause: float) -> None:
        await asyncio.sleep(pause)
        await asyncio.to_thread(server.start)

    async def _disturb(self) -> None:
        """Cut connections, or hold answers up, one after another, at all points of an exchange in turn."""
        while True:
            for point in self.random.sample(list(Point), len(Point)):
                if not self.relay.wanted:
                    self.relay.wanted.append((point, self.random.choice(LATER)))
                await asyncio.sleep(self.random.uniform(0, BEFORE_DISTURBANCE))

    async def _vex(self) -> None:
        """Stop a proxy or Valkey for a while: it goes on as if nothing had been, with what it held; or empty Valkey."""
        while True:
            await asyncio.sleep(self.random.uniform(0, BEFORE_VEXATION))
            victim = self.random.choice([each for each in self.victims if each.kind in {"proxy", "valkey"}])
            if victim.kind == "valkey" and self.random.random() < 0.5:
                self.vexed["valkey flushed"] += await asyncio.to_thread(_flush, victim.server.url)
            else:
                self.vexed[f"{victim.kind} stopped"] += 1
                await self._stop(victim.server.process)

    async def _stop(self, process: Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self.random.uniform(0, STOPPED))
        finally:
            process.send_signal(signal.SIGCONT)


def _flush(url: str) -> bool:
    """Empty a Valkey; whether it was there."""
    address = urlsplit(url)
    with suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=1) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        return connection.recv(16).startswith(b"+OK")
    return False
