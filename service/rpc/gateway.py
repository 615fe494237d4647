"""Asks the application, in this process, what an RPC asks: a request without a socket. It knows no message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of an RPC's metadata the application sees only these: others could say something about a body that isn't there.
_PASSED_ON = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate", "user-agent")


class Reply(NamedTuple):
    """What the application answered."""

    status: int
    headers: Headers
    body: bytes


async def _nothing() -> bytes:
    return b""


class Gateway:
    """The application as something to ask."""

    def __init__(self, app: ASGIApp, state: Mapping[str, Any]) -> None:
        """`state` is what the application's lifespan yields."""
        self._app = app
        self._state = state
        self._asked: set[asyncio.Task[None]] = set()

    async def ask(
        self,
        method: str,
        path: str,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        *,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Awaitable[bytes]] = _nothing,
        was_late: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """One request. Who cancels it is, for the application, a client that left.

        Args:
            method: of the request.
            path: of the request, not quoted.
            metadata: the RPC's; a few go on as headers.
            headers: further ones.
            body: makes the body when the application asks for it; a ServiceError in it is the application's to answer.
            was_late: asked on cancellation; true says that the deadline passed, which the application sees by itself.
        """
        sent = [(name, value) for name, value in metadata if name in _PASSED_ON and isinstance(value, str)]
        scope = self._scope(method, path, [*sent, *(headers or {}).items()])
        left = asyncio.Event()
        started: Message = {}
        content = bytearray()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                content.extend(message.get("body", b""))

        task = asyncio.create_task(self._run(scope, _receiver(body, left), send))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not was_late():
                left.set()
            raise
        return Reply(started["status"], Headers(raw=started["headers"]), bytes(content))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _scope(self, method: str, path: str, headers: Iterable[tuple[str, str]]) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": method,
            "scheme": "http",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "client": None,
            "server": None,
            "state": dict(self._state),
        }


def _receiver(body: Callable[[], Awaitable[bytes]], left: asyncio.Event) -> Receive:
    """Gives the body once, and then waits for the caller to leave."""
    was_given = False

    async def receive() -> Message:
        nonlocal was_given
        if not was_given:
            was_given = True
            return {"type": "http.request", "body": await body(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    return receive
