"""Answers to images seen before, and to images that another request is having computed right now.

The key is the encoded image's digest; what was computed with more compute (and scores at least as high in the
calibration table) may answer a request for less. The oldest used leaves when the bytes are used up. It is one model's,
so a new version starts empty. It knows no HTTP and no queue.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

from service.artifact import Manifest
from service.batch import Answer
from service.budget import Choice, dominates

_ENTRY_BYTES = 1024  # of the objects around an entry's arrays, about

Found = Literal["hit", "coalesced", "miss"]


class Computed(NamedTuple):
    """An answer and what it was computed with."""

    choice: Choice
    answer: Answer
    cached: bool = False  # nothing was computed for this request


class Gone(Exception):
    """Who had it computed was refused, failed or left."""


Flight = tuple[Choice, asyncio.Future[Computed]]


class AnswerCache:
    """Bounded in bytes; every method belongs to the event loop."""

    def __init__(
        self,
        manifest: Manifest,
        max_bytes: int,
        *,
        on_find: Callable[[Found], None],
        on_store: Callable[[int], None],
    ) -> None:
        """`on_find` is told what was found for an image, `on_store` the bytes held after one was stored."""
        self._manifest = manifest
        self._max_bytes = max_bytes
        self._on_find, self._on_store = on_find, on_store
        self._answers: OrderedDict[bytes, Computed] = OrderedDict()
        self._flights: dict[bytes, Flight] = {}
        self._bytes = 0

    async def answers(
        self,
        images: Sequence[bytes],
        choice: Choice,
        compute: Callable[[list[bytes]], Awaitable[list[Answer]]],
    ) -> list[Computed]:
        """The answers to all images at `choice` (one look) or better; `compute` is called for those that nobody has.

        Raises:
            whatever `compute` raises; those who wait for the same images then have them computed themselves.
        """
        found: dict[bytes, Computed] = {}
        digests = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
        by_digest = dict(zip(digests, images, strict=True))
        while missing := [digest for digest in by_digest if digest not in found]:
            waiting: list[tuple[bytes, Flight]] = []
            mine: list[bytes] = []
            for digest in missing:
                known, flight = self._answers.get(digest), self._flights.get(digest)
                if known is not None and dominates(self._manifest, known.choice, choice):
                    self._answers.move_to_end(digest)
                    found[digest] = known
                    self._on_find("hit")
                elif flight is not None and dominates(self._manifest, flight[0], choice):
                    waiting.append((digest, flight))
                else:
                    mine.append(digest)
            if mine:
                found.update(await self._compute(mine, [by_digest[digest] for digest in mine], choice, compute))
            for digest, (_, flying) in waiting:
                try:
                    found[digest] = await asyncio.shield(flying)
                    self._on_find("coalesced")
                except Gone:
                    continue  # the next round has it computed
        return [found[digest] for digest in digests]

    async def _compute(
        self,
        digests: list[bytes],
        images: list[bytes],
        choice: Choice,
        compute: Callable[[list[bytes]], Awaitable[list[Answer]]],
    ) -> dict[bytes, Computed]:
        loop = asyncio.get_running_loop()
        flights: dict[bytes, Flight] = {digest: (choice, loop.create_future()) for digest in digests}
        self._flights.update(flights)
        for _ in digests:
            self._on_find("miss")
        try:
            answers = await compute(images)
            computed = {digest: Computed(choice, answer) for digest, answer in zip(digests, answers, strict=True)}
            for digest, one in computed.items():
                self._store(digest, one._replace(cached=True))
                flights[digest][1].set_result(one._replace(cached=True))
            return computed
        finally:
            for digest, flight in flights.items():
                if not flight[1].done():
                    flight[1].set_exception(Gone())
                    flight[1].exception()  # perhaps nobody waits for it
                if self._flights.get(digest) is flight:
                    del self._flights[digest]

    def _store(self, digest: bytes, computed: Computed) -> None:
        known = self._answers.get(digest)
        if known is not None:
            if dominates(self._manifest, known.choice, computed.choice):
                return
            self._forget(digest)
        answer = computed.answer
        owned = answer._replace(logits=answer.logits.copy(), kept=answer.kept.copy(), queue_s=0.0, inference_s=0.0)
        self._answers[digest] = computed._replace(answer=owned)
        self._bytes += _size_bytes(owned)
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._answers)))
        self._on_store(self._bytes)

    def _forget(self, digest: bytes) -> None:
        self._bytes -= _size_bytes(self._answers.pop(digest).answer)


def _size_bytes(answer: Answer) -> int:
    return int(answer.logits.nbytes + answer.kept.nbytes) + _ENTRY_BYTES
