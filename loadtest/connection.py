"""One keep-alive connection whose requests are bytes made beforehand: less than half the CPU of an HTTP library.

For what is measured to the millisecond, or where the generator would take CPU from what it measures. It understands
answers with a Content-Length, which is all that the service sends; whatever isn't a 200 is an error.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple, Self
from urllib.parse import urlsplit

TIMEOUT_S = 60.0  # after which a request is taken for lost
_MAX_HEAD_BYTES = 65536
_SHOWN_BYTES = 200


class FailedRequest(RuntimeError):
    """A request that wasn't answered with 200; the message says what came instead."""


class Reply(NamedTuple):
    """A good answer."""

    body: bytes
    latency_s: float  # from before the first byte left to the last byte's arrival


class Connection:
    """To one server; one request at a time. Made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._now_s = asyncio.get_running_loop().time

    @classmethod
    async def open(cls, url: str) -> Self:
        """A connection to `http://host:port`; FailedRequest if nobody listens."""
        parts = urlsplit(url)
        try:
            return cls(*await asyncio.open_connection(parts.hostname, parts.port or 80, limit=_MAX_HEAD_BYTES))
        except OSError as error:
            raise FailedRequest(f"{url} can't be reached: {error}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close it."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def ask(self, request: bytes) -> Reply:
        """Send a request of `get` or `post` and read its answer.

        Raises:
            FailedRequest: no answer, or one that isn't 200.
        """
        begun_s = self._now_s()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self._writer.write(request)
                head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await self._reader.readexactly(length)
        except TimeoutError:
            raise FailedRequest(f"{_named(request)} got no answer within {TIMEOUT_S:.0f} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise FailedRequest(f"{_named(request)} got no whole answer: {error}") from None
        if head[9:12] != b"200":
            shown = body[:_SHOWN_BYTES].decode(errors="replace")
            raise FailedRequest(f"{_named(request)} got {head[9:12].decode(errors='replace')}: {shown}")
        return Reply(body, self._now_s() - begun_s)


def get(path: str) -> bytes:
    """A GET request as it goes over the wire."""
    return f"GET {path} HTTP/1.1\r\nHost: loadtest\r\n\r\n".encode()


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A POST request as it goes over the wire."""
    fields = f"Host: loadtest\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def _named(request: bytes) -> str:
    return request.partition(b" HTTP/")[0][:_SHOWN_BYTES].decode(errors="replace")
