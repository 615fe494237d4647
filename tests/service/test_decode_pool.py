"""Photos are decoded on threads, tiny images where they are asked for; both alike."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service import decode_pool
from service.decode_pool import DecodePool, is_tiny
from service.errors import BadImage, Overloaded, UnsupportedImageType
from service.preprocess import ImageLimits, decode, read, resize_crop
from tests.images import encode

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=1 << 20)


def noise(width: int, height: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return encode(Image.fromarray(pixels), kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_tiny_is_few_pixels_by_the_header_and_few_bytes(kind: str) -> None:
    assert is_tiny(noise(32, 32, kind))
    assert not is_tiny(noise(65, 64, kind))
    assert not is_tiny(encode(Image.new("RGB", (1000, 1000)), kind))  # few bytes, many pixels
    assert not is_tiny(noise(32, 32, kind) + bytes(9000))
    assert not is_tiny(noise(32, 32, kind)[:8])


@pytest.mark.parametrize(("side", "on_the_loop"), [(32, True), (200, False)])
async def test_only_what_is_tiny_is_decoded_on_the_loop(
    side: int, on_the_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noted(*given: Any) -> NDArray[np.uint8]:
        threads.append(threading.get_ident())
        return read(*given)

    monkeypatch.setattr(decode_pool, "read", noted)
    pool, image = DecodePool(threads=1, max_pending=8, limits=LIMITS), noise(side, side)
    try:
        pixels = await pool.decode_one(image, 28)
    finally:
        pool.close()
    assert np.array_equal(pixels, resize_crop(decode(image, LIMITS), 28))
    assert (threads == [threading.get_ident()]) == on_the_loop


async def test_the_time_of_threads_is_told_over_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    times, told = iter([1.0, 3.0]), list[float]()
    monkeypatch.setattr("service.decode_pool.time.perf_counter", lambda: next(times))
    pool = DecodePool(threads=4, max_pending=8, limits=LIMITS, on_decode=told.append)
    try:
        with pytest.raises(UnsupportedImageType):
            await pool.decode_one(b"no image", 28)
    finally:
        pool.close()
    assert told == [0.5]
    assert pool.pending == 0


async def test_an_image_counts_until_its_thread_is_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, end = threading.Event(), threading.Event()

    def slow(*given: Any) -> NDArray[np.uint8]:
        entered.set()
        assert end.wait(10)
        return read(*given)

    monkeypatch.setattr(decode_pool, "read", slow)
    pool, image = DecodePool(threads=1, max_pending=2, limits=LIMITS), noise(200, 200)
    try:
        given_up = asyncio.create_task(pool.decode([image, image], 28))
        assert await asyncio.to_thread(entered.wait, 10)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        with pytest.raises(Overloaded, match="1 images are being decoded"):  # the other hadn't begun
            await pool.decode([image, image], 28)
        end.set()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert len(await pool.decode([image, image], 28)) == 2
                    break
                except Overloaded:
                    await asyncio.sleep(0.001)
    finally:
        end.set()
        pool.close()


async def test_a_tiny_image_that_is_corrupt_is_an_error_like_any_other() -> None:
    pool, image = DecodePool(threads=1, max_pending=8, limits=LIMITS), noise(32, 32)
    try:
        with pytest.raises(BadImage):
            await pool.decode_one(image[: len(image) // 2], 28)
    finally:
        pool.close()
