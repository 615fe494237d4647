"""One client's connection: uvicorn's, with an end to what a client may take.

Uvicorn bounds idle time and nothing else: who sends a header or a body byte by byte, or takes no answer, keeps a
connection for ever. Here a client gets so long for a header, so long for a body and so long to take what was sent; and
there are so many connections at once. An idle one is closed for a new one, or one whose header doesn't come; without
any, the new one's requests get 503, but for the probes: a crowded process isn't a dead one. It knows no route.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakMethod

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.error_handlers import problem
from service.settings import Settings

logger = logging.getLogger("skipvit")

# Answered in a crowded process, too: it isn't dead, and whoever watches it should see it.
_PROBES = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
_MAX_PIPELINED = 32  # requests that came with one that isn't answered; the parser takes all that a packet holds at once
_HARD_LIMIT_RATIO = 2  # so many times the limit, and a connection isn't even read from
_LINGER_S = 1.0  # without a byte from a client that was answered before it had sent all
_HEADER_S = 2.0  # after which who hasn't sent a header gives way to who may
_TELL_EVERY_S = 60.0  # of refusals


class Connection(HttpToolsProtocol):
    """httptools is named, not left to uvicorn's choice: it parses in C, and tells what part of a request it is in."""

    settings: ClassVar[Settings]
    told_s: ClassVar[float] = -math.inf  # when the log was told of a refusal

    _arriving: str | None = None  # the part of a request of which a piece has come: "header" or "body"
    _bytes_kept = 0  # that came since the parser last gave something away: it would keep a line of any length
    # What the client owes us, and from when on: its header or body, by the request before it; None is nothing.
    _owed: tuple[str, object] | None = None
    _owed_since_s = 0.0
    _deadline: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None
    _linger_until_s = 0.0

    @classmethod
    def limited(cls, settings: Settings) -> type[Connection]:
        """The class of connections with these limits, as uvicorn wants it."""
        return type("LimitedConnection", (cls,), {"settings": settings})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # tell of anything that isn't taken, also when closing waits for it
        self._count()
        excess = len(self.connections) - self.settings.max_connections
        if excess > 0 and not self._make_room():
            if len(self.connections) > _HARD_LIMIT_RATIO * self.settings.max_connections:
                self._tell("hard_limit")
                transport.abort()
                return
            self.app = self._refuse
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._linger()
            return
        self._unset_keepalive_if_required()
        self._bytes_kept += len(data)
        limit = self.settings.max_header_bytes
        try:
            self._parse(data)
            if self._bytes_kept > limit:
                self._end(431, "Headers too large", f"the header has more than {limit} bytes, the limit")
        except httptools.HttpParserError as error:
            self._end(400, "Malformed request", str(error.__context__ or error))
        self._watch()

    def _parse(self, data: bytes) -> None:
        """Parse, and go on where a client offers another protocol: the parser would take a body for its first words.

        Java's own client offers HTTP/2 with its first request.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                kept = [header for header in self.headers if header[0] != b"upgrade"]
                lines = b"".join(b"%b: %b\r\n" % header for header in kept)
                version = self.parser.get_http_version().encode()
                start = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
                data = start + lines + b"\r\n" + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError(f"more than {_MAX_PIPELINED} requests wait on this connection")
        super().on_message_begin()
        self._arriving = "header"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._arriving == "header":  # and not a trailer: nobody reads it
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":  # after which the parser takes everything for another protocol
            raise ValueError("CONNECT is for proxies, which this isn't")
        if self.parser.should_upgrade():
            return
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            raise ValueError("a request of HTTP/1.1 has one Host header")
        super().on_headers_complete()
        self._arriving, self._bytes_kept = "body", 0
        if self.scope["method"] != "HEAD":
            self.cycle.transport = _Joining(self.transport, WeakMethod(self._close))  # strong, they would be a ring

    def on_body(self, body: bytes) -> None:
        self._bytes_kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._arriving, self._bytes_kept = None, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._lingering is None:  # else it was the last one
            super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stuck, self._lingering):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._count()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.settings.client_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    @property
    def _is_idle(self) -> bool:
        return self.timeout_keep_alive_task is not None and self._owed is None and not self.transport.is_closing()

    def _watch(self) -> None:
        """Start the clock when the client begins to owe something, stop it when that has come."""
        owed = self._what_is_owed()
        if owed == self._owed:
            return
        self._owed, self._owed_since_s = owed, self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if owed is not None:
            self._deadline = self.loop.call_later(self.settings.client_timeout_s, self._give_up)

    def _what_is_owed(self) -> tuple[str, object] | None:
        if self.transport.is_closing() or self._lingering is not None:
            return None
        if self._arriving == "body":
            return "body", self.cycle
        if self._is_answering:
            return None
        begun = self._arriving == "header" or self.timeout_keep_alive_task is None
        return ("header", self.cycle) if begun else None

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        assert self._owed is not None, "the timer is cancelled with what it waits for. This is a bug."
        part = self._owed[0]
        if self._arriving is None:  # not a byte of a header
            self._tell("silent")
            self.transport.close()
        else:
            waited_s = round(self.loop.time() - self._owed_since_s, 1)
            self._end(408, "Request timeout", f"the {part} didn't arrive within {waited_s:g} s")

    def _end(self, status: int, title: str, detail: str) -> None:
        """Answer without a route, unless a route has begun to, and close."""
        if self.transport.is_closing() or self._lingering is not None:
            return
        if self._arriving != "body" and self._is_answering:  # it came with an earlier request, whose answer is the last
            self.cycle.keep_alive = False
            return
        if self._arriving == "body" and (self.cycle.response_started or self.pipeline):
            self.transport.close()
            return
        path = ""
        if self._arriving == "body":
            path = self.scope["path"]
            self.cycle.disconnected = True  # the route, which waits for the rest, sees the client leave
            self.cycle.message_event.set()
        self._tell("timeout" if status == 408 else "malformed")
        response = problem(path, status, title, detail, "")
        headers = [*response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + bytes(response.body))
        self._close()

    def _close(self) -> None:
        """Close; where the client still sends, not before it had time to read the answer (RFC 9112, 9.6).

        What comes after a socket is closed makes the system reset the connection, and the answer is lost.
        """
        if self._arriving is None or self.transport.is_closing():
            self.transport.close()
        elif self._lingering is None:
            self.transport.write_eof()
            self.flow.resume_reading()
            self._linger_until_s = self.loop.time() + self.settings.client_timeout_s
            self._linger()

    def _linger(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        until_s = min(self.loop.time() + _LINGER_S, self._linger_until_s)
        self._lingering = self.loop.call_at(until_s, self.transport.close)

    def _make_room(self) -> bool:
        """End another connection, if there is one that nobody would miss, or nobody much."""
        others = [other for other in self.connections if isinstance(other, Connection)]
        idle = next((other for other in others if other._is_idle), None)
        late = next((other for other in others if other._owes_a_header), None) if idle is None else None
        if idle is not None:
            idle.timeout_keep_alive_handler()
        elif late is not None:
            late._give_up()
        return (idle or late) is not None

    @property
    def _owes_a_header(self) -> bool:
        """And has had the time to send one."""
        owed = self._owed is not None and self._owed[0] == "header" and not self.transport.is_closing()
        return owed and self.loop.time() - self._owed_since_s > _HEADER_S

    def _count(self) -> None:
        if "serving" in self.app_state:
            self.app_state["serving"].metrics.on_connections(len(self.connections))

    def _tell(self, reason: str) -> None:
        """Count a refusal; where connections have run out, say so now and then."""
        if "serving" in self.app_state:
            self.app_state["serving"].metrics.on_refusal(reason)
        if "limit" in reason and self.loop.time() - self.told_s > _TELL_EVERY_S:
            type(self).told_s = self.loop.time()
            logger.warning("connections are refused: SKIPVIT_MAX_CONNECTIONS is %d", self.settings.max_connections)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _PROBES:
            await self.config.loaded_app(scope, receive, send)
            return
        self._tell("limit")
        detail = f"more than {self.settings.max_connections} connections at once, the limit"
        response = problem(scope["path"], 503, "Too many connections", detail, "")
        response.headers.update({"Retry-After": "1", "Connection": "close"})
        await response(scope, receive, send)


class _Joining(asyncio.Transport):
    """Sends an answer's header with the first of its body: one packet and one system call, uvicorn makes two."""

    def __init__(self, transport: asyncio.Transport, close: WeakMethod[Callable[[], None]]) -> None:
        super().__init__()
        self._transport = transport
        self._close = close  # of the connection, where it still is
        self._header: bytes | None = None  # empty: sent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._header is None and data[:12] == b"HTTP/1.1 100":
            self._transport.write(data)  # 100 Continue, before the answer
        elif self._header is None:
            self._header = bytes(data)
        else:
            self._transport.writelines([self._header, data] if self._header else [data])
            self._header = b""

    def close(self) -> None:
        if self._header:
            self._transport.write(self._header)
        (self._close() or self._transport.close)()

    def is_closing(self) -> bool:
        return self._transport.is_closing()
