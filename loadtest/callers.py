"""Callers in a closed loop, as light as can be, for what is told by an answer's own timings.

Light, because they share CPUs with what they measure: answers are read as JSON and nothing else is done with them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np

from loadtest import added
from loadtest.added import Timed
from loadtest.connection import Connection, post

_BOUNDARY = "loadtest-image"


async def ask_all(
    url: str, requests: Sequence[bytes], concurrency: int, *, limit: int | None = None, seconds: float = float("inf")
) -> list[Timed]:
    """`concurrency` callers, each on a connection of its own, sending until the limit or the time is reached.

    Every request that was sent is answered when this returns, so all batches are whole.

    Raises:
        FailedRequest: one wasn't answered with 200; the others are given up.
    """
    now_s = asyncio.get_running_loop().time
    answers: list[Timed] = []
    numbers = iter(range(limit)) if limit is not None else itertools.count()
    connections = [await Connection.open(url) for _ in range(concurrency)]
    end_s = now_s() + seconds

    async def caller(connection: Connection) -> None:
        for number in numbers:
            answers.append(added.read(*await connection.ask(requests[number % len(requests)])))
            if now_s() >= end_s:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(caller(connection))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        for connection in connections:
            await connection.close()
    return answers


async def engine_undisturbed(url: str, path: str, images: Sequence[bytes], times: int) -> float:
    """Images a second of the engine while nobody else asks: forms with all the images, one after the other; median.

    Args:
        url: of the service.
        path: with the query.
        images: PNGs, as many as one form may have.
        times: forms that count; one more is sent first.

    Raises:
        FailedRequest: one wasn't answered with 200.
    """
    request = form(path, images)
    async with await Connection.open(url) as connection:
        found = [added.read(*await connection.ask(request)) for _ in range(times + 1)]
    return float(np.median([answer.batch_size / answer.inference_s for answer in found[1:]]))


def form(path: str, images: Sequence[bytes]) -> bytes:
    """A POST request whose form has all these PNGs as parts named `image`."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="0.png"\r\n\r\n'.encode()
    body = b"".join(head + image + b"\r\n" for image in images) + f"--{_BOUNDARY}--\r\n".encode()
    return post(path, body, f"multipart/form-data; boundary={_BOUNDARY}")
