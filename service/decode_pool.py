"""Decodes images on a few threads beside the event loop, before they are admitted to the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import Overloaded, ServiceError
from service.image_header import image_kind, image_size
from service.preprocess import ImageLimits, Interpolation, read

T = TypeVar("T")

# An image of at most so much is decoded at once where it is asked for, on the loop: a quarter of a millisecond, less
# than a thread's taking it over and giving it back.
_TINY_BYTES, _TINY_PIXELS = 8 * 1024, 64 * 64


class DecodePool:
    """At most `threads` images at once, at most `max_pending` images in all."""

    def __init__(
        self,
        *,
        threads: int,
        max_pending: int,
        limits: ImageLimits,
        on_decode: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_decode` is told the seconds that each image took, over the number of threads."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._threads = threads
        self._max_pending = max_pending
        self._limits = limits
        self._on_decode = on_decode
        self._pending = 0

    @property
    def pending(self) -> int:
        """Images that are being decoded or wait for it."""
        return self._pending

    async def decode(
        self,
        images: Sequence[bytes],
        size_px: int,
        interpolation: Interpolation = "bicubic",
    ) -> list[NDArray[np.uint8]]:
        """Decode all to (size_px, size_px, 3), in order; the first error wins and the rest is given up.

        Raises:
            Overloaded: too many images are being decoded.
            ServiceError: what `preprocess.decode` raises, with the image's number if there are several.
        """
        if self._pending + len(images) > self._max_pending:
            raise Overloaded(f"{self._pending} images are being decoded already", retry_after_s=1.0)

        def job(index: int, data: bytes) -> NDArray[np.uint8]:
            started_s = time.perf_counter()
            try:
                return read(data, self._limits, size_px, interpolation)
            except ServiceError as error:
                if len(images) == 1:
                    raise
                raise type(error)(f"image {index}: {error}") from error
            finally:
                self._on_decode((time.perf_counter() - started_s) / self._threads)

        if len(images) == 1 and is_tiny(images[0]):
            return [job(0, images[0])]
        jobs = [self._pool.submit(job, index, data) for index, data in enumerate(images)]
        self._pending += len(jobs)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, jobs))
        finally:
            for submitted in jobs:
                self._release(submitted)

    def _release(self, job: Future[NDArray[np.uint8]]) -> None:
        """Take back what no thread has begun; what one has, counts until it ends: nobody can take that back."""
        if job.done() or job.cancel():
            self._pending -= 1
            return
        loop = asyncio.get_running_loop()

        def on_end(job: Future[NDArray[np.uint8]]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._release, job)

        job.add_done_callback(on_end)

    async def decode_one(
        self, image: bytes, size_px: int, interpolation: Interpolation = "bicubic"
    ) -> NDArray[np.uint8]:
        """Decode one image; see `decode`."""
        return (await self.decode([image], size_px, interpolation))[0]

    async def run(self, function: Callable[[], T]) -> T:
        """Run other CPU work of the same kind (drawing) off the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        """Give up what hasn't begun; running jobs end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def is_tiny(image: bytes) -> bool:
    """Whether an encoded image is few bytes and, by its header, few pixels."""
    if len(image) > _TINY_BYTES:
        return False
    kind = image_kind(image)
    size = None if kind is None else image_size(image, kind)
    return size is not None and size[0] * size[1] <= _TINY_PIXELS
