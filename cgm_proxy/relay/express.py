"""The short way for small GETs: no task, no future and no request object between the client's and the upstream's bytes.

aiohttp's server reads each request (its strict parser decides what is one), and this connection answers a GET without a
body itself if an upstream connection is idle and nothing else is under way: it writes the request upstream and goes on
with other clients; when the answer is there as a whole, it writes that. In every other case (an answer in pieces, an
error, silence, pipelining, a client of HTTP/1.0, ...) the request, or the exchange that has begun, goes to the
handler as if it had never been here, so that there is one place for everything that can go wrong: `relay`.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from cgm_proxy.relay.relay import Begun, Relay

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ExpressServer(web.Server):
    """aiohttp's low-level server whose connections know the short way.

    `streams` tells of a raw request target whether a GET of it is certain to be passed through by the handler.
    """

    def __init__(self, handler: Handler, relay: Relay, streams: Callable[[str], bool], **options: Any) -> None:
        super().__init__(handler, **options)
        self._relay = relay
        self._streams = streams

    def __call__(self) -> RequestHandler:
        """Make the protocol of a new connection."""
        return Express(self, self._relay, self._streams, loop=self._loop, **self._kwargs)


class Express(RequestHandler):
    """A client's connection."""

    __slots__ = ("_begun", "_relay", "_streams")

    def __init__(self, manager: web.Server, relay: Relay, streams: Callable[[str], bool], **options: Any) -> None:
        super().__init__(manager, **options)
        self._relay = relay
        self._streams = streams
        self._begun: Begun | None = None

    def data_received(self, data: bytes) -> None:
        """Read requests; a lone GET goes the short way if nothing else is under way."""
        if self._begun is not None:
            self._hand_over()
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages:
            super().data_received(data)
            return
        self._waiter = None  # who waits for requests must not wake before it is known who answers
        super().data_received(data)
        self._waiter = waiter
        if self._messages and not self._begin():
            waiter.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what the client does not wait for any more."""
        begun = self._begun or self._relay.begun.pop(self, None)
        if begun is not None:
            begun.protocol.on_answer = None
            begun.connection.close()
            self._ended()
        super().connection_lost(exc)

    def close(self) -> None:
        """Stop after what is under way, which the handler finishes: a stopping server waits for it."""
        if self._begun is not None:
            self._hand_over()
        super().close()

    def _begin(self) -> bool:
        """Send the only request upstream if it may go the short way, and tell whether it went."""
        message, payload = self._messages[0]
        if not isinstance(message, RawRequestMessage) or payload is not EMPTY_PAYLOAD or not self._plain(message):
            return False
        kept = self._relay.pool.kept(bodiless=False)
        if kept is None:
            return False
        connection, protocol = kept
        peer = self.peername[0] if isinstance(self.peername, tuple) else None
        head = self._relay.bodiless(message, peer)
        self._begun = Begun(message, connection, protocol, self._loop.time())
        self._relay.traffic.in_flight += 1
        self._relay.traffic.bytes_up += len(head)
        self._next_keepalive_close_time = self._begun.started + self._keepalive_timeout
        self._request_in_progress = True
        protocol.on_answer = self._answered
        protocol.send(head)
        protocol.start_timeout()
        return True

    def _plain(self, message: RawRequestMessage) -> bool:
        """Tell whether a request is a lone GET over HTTP/1.1 by a client that takes what it is sent."""
        return (
            message.method == "GET"
            and message.version == HttpVersion11
            and not (message.should_close or message.upgrade or self._paused or self._upgraded)
            and len(self._messages) == 1
            and "Expect" not in message.headers
            and self._streams(message.path)
        )

    def _answered(self) -> None:
        """Write the answer if it is here as a whole; else it is the handler's."""
        begun = self._begun
        if begun is None or self.transport is None:
            return
        head = begun.protocol.whole()
        relay = self._relay
        try:
            written = head and relay.answer.whole("GET", HttpVersion11, head, keep_alive=True)[0]
        except ValueError:  # the handler will see it as well, and say so
            written = None
        if head is None or written is None:
            self._hand_over()
            return
        self.transport.write(written)
        relay.traffic.count_response(head[0].code, self._loop.time() - begun.started)
        relay.traffic.bytes_down += len(written)
        begun.protocol.taken()
        relay.pool.give_back(begun.connection)
        self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        self._ended()

    def _hand_over(self) -> None:
        """Give the exchange to the handler, as it stands."""
        begun = self._begun
        if begun is not None:
            begun.protocol.on_answer = None
            self._relay.begun[self] = begun
            self._relay.traffic.in_flight -= 1
            self._begun = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _ended(self) -> None:
        if self._begun is not None:
            self._begun = None
            self._relay.traffic.in_flight -= 1
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
