"""A small HTTP server on a real port, in a thread of its own, that behaves as a test wants it to: well or badly."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from PIL import Image

LABELS = ("ant", "bee", "cat", "dog")
LAYERS, PATCHES = 3, 16
Behaviour = Callable[["Request"], Awaitable[bytes | None]]


class Request:
    """One request as it came; `number` counts classify requests from 0."""

    def __init__(self, number: int, target: str, headers: Mapping[str, str], body: bytes) -> None:
        self.number = number
        self.path = urlsplit(target).path
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        self.headers = headers
        self.body = body


class Server:
    """Answers `/v1/models` and, by a behaviour, `/v1/classify`; it keeps every request it was sent."""

    def __init__(self, behaviour: Behaviour, labels: tuple[str, ...] = LABELS, *, openapi: str = "{}") -> None:
        self.requests: list[Request] = []
        self.url = ""
        self._behaviour, self._labels, self._openapi = behaviour, labels, openapi

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it, or a behaviour returns None: then it is reset."""
        try:
            while True:
                request = await self._read(reader)
                answer = await self._answer(request)
                if answer is None:
                    raw: socket.socket = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(len(self.requests), head[0].split()[1], headers, body)

    async def _answer(self, request: Request) -> bytes | None:
        if request.path == "/v1/classify":
            self.requests.append(request)
            return await self._behaviour(request)
        model = {"name": "toy", "version": "1", "labels": list(self._labels), "gated_layers": [1, 2], "presets": {}}
        documents = {"/v1/models": {"models": [model]}, "/v1/models/toy": model, "/readyz": {"status": "ready"}}
        if request.path == "/openapi.json":
            return reply(self._openapi.encode())
        return reply(json.dumps(documents[request.path]).encode())


def reply(body: bytes, status: int = 200) -> bytes:
    """A JSON answer as it goes over the wire."""
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


def answer(label: str, *, threshold: float = 0.0, degraded: bool = False) -> bytes:
    """A good answer of `/v1/classify` that is sure of `label`."""
    skipped = round(threshold * PATCHES)
    others = [name for name in LABELS if name != label]
    result = {
        "predictions": [{"index": 0, "label": name, "probability": 0.25} for name in (label, *others)],
        "threshold": threshold,
        "size_px": 28,
        "degraded": degraded,
        "skipped_patches": {"mean": float(skipped), "per_layer": [0, skipped, skipped], "patches": PATCHES},
        "macs": {"used": 1, "dense": 1, "ratio": 1 - threshold / 2},
    }
    timing = {"decode": 0.1, "queue": 0.2, "inference": 0.3, "total": 0.7}
    document = {"model": {"name": "toy", "version": "1"}, "results": [result], "timing_ms": timing, "batch_size": 1}
    return reply(json.dumps(document).encode())


def image_folder(root: Path, per_class: int = 3) -> Path:
    """An image folder whose files say what they are: each is one grey value, its label's index."""
    for index, name in enumerate(LABELS):
        folder = root / "test" / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            grey = index + len(LABELS) * number
            Image.new("RGB", (28, 28), (grey, grey, grey)).save(folder / f"{number}.png")
    return root


def label_of(body: bytes) -> str:
    """The label of an image of `image_folder`."""
    pixel = Image.open(io.BytesIO(body)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return LABELS[int(pixel[0]) % len(LABELS)]


async def good(request: Request) -> bytes | None:
    """Always right."""
    return answer(label_of(request.body), threshold=float(request.query.get("threshold", 0)))


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server on a free port until the block ends."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        started.set()
        async with listener:
            await stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
