"""A server on a real port, in the test's own event loop, with the signal handling of `python -m service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from fastapi import FastAPI

from service.app import create_app
from service.server import DrainingServer, make_config
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle


class Live(NamedTuple):
    """A running server."""

    port: int
    app: FastAPI
    task: asyncio.Task[None]
    connections: set[Any]  # uvicorn's, open now
    server: DrainingServer


@asynccontextmanager
async def live_server(engine: FakeEngine, settings: Settings) -> AsyncIterator[Live]:
    """Serve until the block ends; whatever the block did, the engine is released and the server drained.

    The guard, which computes a random answer again, is off unless the settings name it: tests count batches.
    """
    if "guard_ratio" not in settings.model_fields_set:
        settings = settings.model_copy(update={"guard_ratio": 0.0})
    async with live_app(create_app(settings, bundle=fake_bundle(), engine=engine), settings, engine.release) as live:
        yield live


@asynccontextmanager
async def live_app(app: FastAPI, settings: Settings, release: Callable[[], None]) -> AsyncIterator[Live]:
    """Serve an application until the block ends; whatever the block did, `release` is called and the server drained."""
    server = DrainingServer(
        make_config(app, settings.model_copy(update={"port": 0})),
        lifecycle=app.state.lifecycle,
        delay_s=settings.drain_delay_s,
        timeout_s=settings.drain_timeout_s,
    )
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not task.done(), "the server didn't start"
            await asyncio.sleep(0)
        yield Live(server.servers[0].sockets[0].getsockname()[1], app, task, server.server_state.connections, server)
    finally:
        release()
        server.should_exit = True
        await task


async def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request on a connection of its own; status and body."""
    reader, writer = await send(port, method, path, body)
    try:
        answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


async def send(
    port: int, method: str, path: str, body: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send one request and leave the answer unread."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        await writer.drain()
    except ConnectionError:
        writer.close()
        raise
    return reader, writer
