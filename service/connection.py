"""One client's connection: uvicorn's, with an end to what a client may take.

Uvicorn bounds idle time and nothing else: who sends a header or a body byte by byte, or takes no answer, keeps a
connection for ever. Here a client gets so long for a header, so long for a body and so long to take what was sent; and
there are so many connections at once. An idle one is closed for a new one; when none is idle, the new one's requests
get 503, but for the probes: a crowded process isn't a dead one. It knows no route.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import ClassVar, NamedTuple

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.error_handlers import problem

_PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
_HARD_LIMIT_RATIO = 2  # so many times the limit, and a connection isn't even read from


class ConnectionLimits(NamedTuple):
    """What connections may take."""

    max_connections: int
    client_timeout_s: float


class Connection(H11Protocol):
    """h11 is named, not left to uvicorn's choice: other parsers set no limit to a header."""

    limits: ClassVar[ConnectionLimits]

    # What the client owes us, and from when on: its header or body, by the request before it; None is nothing.
    _owed: tuple[str, object] | None = None
    _deadline: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    @classmethod
    def limited(cls, limits: ConnectionLimits) -> type[Connection]:
        """The class of connections with these limits, as uvicorn wants it."""
        return type("LimitedConnection", (cls,), {"limits": limits})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # tell of anything that isn't taken, also when closing waits for it
        excess = len(self.connections) - self.limits.max_connections
        if excess > 0 and not self._close_an_idle_one():
            if len(self.connections) > _HARD_LIMIT_RATIO * self.limits.max_connections:
                transport.abort()
                return
            self.app = self._refuse
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.limits.client_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()  # uvicorn calls this while it handles h11's error, which knows better than 400
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            limit_bytes = self.config.h11_max_incomplete_event_size
            self._end(status, "Headers too large", f"the header has more than {limit_bytes} bytes, the limit")
        else:
            self._end(status, "Malformed request" if status == 400 else HTTPStatus(status).phrase, str(error or msg))

    @property
    def _is_idle(self) -> bool:
        return self.timeout_keep_alive_task is not None and self._owed is None and not self.transport.is_closing()

    def _watch(self) -> None:
        """Start the clock when the client begins to owe something, stop it when that has come."""
        owed = self._what_is_owed()
        if owed == self._owed:
            return
        self._owed = owed
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if owed is not None:
            self._deadline = self.loop.call_later(self.limits.client_timeout_s, self._give_up)

    def _what_is_owed(self) -> tuple[str, object] | None:
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.cycle
        begun = bool(self.conn.trailing_data[0]) or self.timeout_keep_alive_task is None
        return ("header", self.cycle) if self.conn.their_state is h11.IDLE and begun else None

    def _give_up(self) -> None:
        assert self._owed is not None, "the timer is cancelled with what it waits for. This is a bug."
        part = self._owed[0]
        answered = part == "body" and self.cycle.response_started
        if answered or (part == "header" and not self.conn.trailing_data[0]):
            self.transport.close()
        else:
            if part == "body":  # the route, which waits for it, sees the client leave
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._end(408, "Request timeout", f"the {part} didn't arrive within {self.limits.client_timeout_s:g} s")

    def _end(self, status: int, title: str, detail: str) -> None:
        """Answer without a route, unless a route has begun to, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        path = self.scope["path"] if self.scope and self.conn.their_state is not h11.IDLE else ""
        response = problem(path, status, title, detail, "")
        headers = [*response.raw_headers, (b"connection", b"close")]
        reason = title.encode()
        events = (h11.Response(status_code=status, headers=headers, reason=reason), h11.Data(bytes(response.body)))
        for event in (*events, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _close_an_idle_one(self) -> bool:
        for other in self.connections:
            if isinstance(other, Connection) and other._is_idle:
                other.timeout_keep_alive_handler()
                return True
        return False

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _PROBES:
            await self.config.loaded_app(scope, receive, send)
            return
        detail = f"more than {self.limits.max_connections} connections at once, the limit"
        response = problem(scope["path"], 503, "Too many connections", detail, "")
        response.headers.update({"Retry-After": "1", "Connection": "close"})
        await response(scope, receive, send)
