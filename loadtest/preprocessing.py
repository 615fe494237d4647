"""What decoding costs by the image's kind and size, by the server's own clock, and whether it holds others up.

Photos are made, not kept: the same for everybody, and no megabytes in the repository.
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from loadtest import added
from loadtest.connection import Connection, get, post

QUERY = "threshold=0"  # one look, so decoded once
QUALITY = 90
POLL_S = 0.02
_TILE_PX = 1000
_OCTAVES = 8
_SENDERS = 2  # of large images at once while others are timed


class Photo(NamedTuple):
    """One encoded image."""

    name: str
    megapixels: float
    encoded: bytes
    content_type: str


def photo(width: int, height: int, seed: int = 0) -> Photo:
    """A JPEG of that many pixels whose detail is spread over all scales, as in a photo; about 0.35 bytes a pixel."""
    draw = np.random.default_rng(seed)
    tile = np.full((_TILE_PX, _TILE_PX, 3), 128, np.float32)
    for octave in range(_OCTAVES):
        side = -(-_TILE_PX // 2**octave)
        grain = Image.fromarray(draw.normal(128, 12, (side, side, 3)).clip(0, 255).astype(np.uint8))
        enlarged = grain.resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
        tile += (np.asarray(enlarged, np.float32) - 128) * 0.35 * 1.4**octave
    times = (-(-height // _TILE_PX), -(-width // _TILE_PX), 1)
    pixels = np.tile(tile.clip(0, 255).astype(np.uint8), times)[:height, :width]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return Photo(f"{width} x {height} JPEG", width * height / 1e6, stream.getvalue(), "image/jpeg")


async def decoding(url: str, photos: Iterable[Photo], times: int) -> list[dict[str, Any]]:
    """Each photo so often, one request after the other: the server's decoding time.

    Raises:
        FailedRequest: one wasn't answered with 200.
    """
    found = []
    async with await Connection.open(url) as connection:
        for item in photos:
            request = post(f"/v1/classify?{QUERY}", item.encoded, item.content_type)
            replies = [await connection.ask(request) for _ in range(times + 1)]
            took_ms = [1e3 * added.read(*reply).decode_s for reply in replies[1:]]  # the first one warms up
            p50_ms = float(np.median(took_ms))
            found.append(
                {
                    "image": item.name,
                    "megapixels": item.megapixels,
                    "bytes": len(item.encoded),
                    "decode_p50_ms": p50_ms,
                    "decode_p50_ms_per_megapixel": p50_ms / item.megapixels,
                }
            )
    return found


async def held_up(url: str, item: Photo, times: int) -> dict[str, Any]:
    """Latency of /healthz every 20 ms, first beside nothing and then while large images are sent and decoded.

    As a caller sees it: what sending megabytes takes on this side, and waiting for a CPU, is in it.

    Raises:
        FailedRequest: a request wasn't answered with 200.
    """
    request = post(f"/v1/classify?{QUERY}", item.encoded, item.content_type)
    numbers = itertools.count()

    async def send() -> None:
        async with await Connection.open(url) as connection:
            while next(numbers) < times:
                await connection.ask(request)

    nothing = asyncio.create_task(asyncio.sleep(1.0))
    before_ms = await _poll(url, nothing)
    beside_ms = await _poll(url, asyncio.gather(*(send() for _ in range(_SENDERS))))
    return {
        "image": item.name,
        "polls": len(beside_ms),
        "healthz_beside_nothing_p50_ms": float(np.percentile(before_ms, 50)),
        "healthz_beside_nothing_p99_ms": float(np.percentile(before_ms, 99)),
        "healthz_p50_ms": float(np.percentile(beside_ms, 50)),
        "healthz_p99_ms": float(np.percentile(beside_ms, 99)),
        "healthz_most_ms": float(max(beside_ms)),
    }


async def _poll(url: str, work: asyncio.Future[Any]) -> list[float]:
    """Milliseconds of each GET /healthz until the work is done; one at least."""
    took_ms: list[float] = []
    async with await Connection.open(url) as connection:
        try:
            while not took_ms or not work.done():
                took_ms.append(1e3 * (await connection.ask(get("/healthz"))).latency_s)
                await asyncio.sleep(POLL_S)
        finally:
            work.cancel()
    await work
    return took_ms
