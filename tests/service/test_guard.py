from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import BadImage
from service.guard import Guard
from tests.fakes import FakeEngine
from tests.service.test_batcher import busy, image, running


class Heard:
    def __init__(self) -> None:
        self.samples: list[tuple[bool, float]] = []
        self.verdicts: list[bool] = []
        self.some = asyncio.Event()

    def on_sample(self, agreed: bool, agreement: float) -> None:
        self.samples.append((agreed, agreement))
        self.some.set()


async def decode(encoded: bytes) -> NDArray[np.uint8]:
    if encoded == b"broken":
        raise BadImage("broken")
    return image(encoded[0])


def guard_of(batcher: Any, heard: Heard, **options: Any) -> Guard:
    given: dict[str, Any] = {"ratio": 1.0, "min_agreement": 0.8, "random": lambda: 0.5, **options}
    return Guard(batcher, decode, on_sample=heard.on_sample, on_verdict=heard.verdicts.append, **given)


async def until(heard: Heard, samples: int) -> None:
    async with asyncio.timeout(10):
        while len(heard.samples) < samples:
            heard.some.clear()
            await heard.some.wait()


async def test_an_answer_is_compared_with_full_compute() -> None:
    engine, heard = FakeEngine(), Heard()
    async with running(engine) as batcher:
        guard = guard_of(batcher, heard)
        guard.start()
        guard.offer(bytes([5]), label=1)  # the fake's label for 5 is 1
        await until(heard, 1)
        guard.offer(bytes([6]), label=1)
        await until(heard, 2)
        guard.stop()
    assert heard.samples == [(True, 1.0), (False, 0.5)]


async def test_samples_wait_until_the_engine_is_idle() -> None:
    engine, heard = FakeEngine(), Heard()
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        guard = guard_of(batcher, heard)
        guard.start()
        guard.offer(bytes([5]), label=1)
        second = batcher.submit(image(2), 0.0, None)
        for _ in range(10):
            await asyncio.sleep(0)
        assert engine.batches == [[99]]
        engine.release()
        await asyncio.gather(first, second)
        await until(heard, 1)
        guard.stop()
    assert engine.batches == [[99], [2], [5]]


@pytest.mark.parametrize(("draw", "taken"), [(0.009, True), (0.011, False)])
async def test_only_a_share_is_sampled(draw: float, taken: bool) -> None:
    async with running(FakeEngine()) as batcher:
        guard = guard_of(batcher, Heard(), ratio=0.01, random=lambda: draw)
        guard.offer(bytes([5]), label=1)
        assert bool(guard._samples) is taken


async def test_low_agreement_is_told_and_recovery_too() -> None:
    engine, heard = FakeEngine(), Heard()
    async with running(engine) as batcher:
        guard = guard_of(batcher, heard, min_agreement=0.5)
        guard.start()
        for sample in range(20):
            guard.offer(bytes([5]), label=3)
            await until(heard, sample + 1)
        assert heard.verdicts == [False]
        for sample in range(40):
            guard.offer(bytes([5]), label=1)
            await until(heard, 20 + sample + 1)
        guard.stop()
    assert heard.verdicts == [False, True, True]


async def test_one_bad_stretch_is_told_once_though_the_share_remembers_it() -> None:
    engine, heard = FakeEngine(), Heard()
    async with running(engine) as batcher:
        guard = guard_of(batcher, heard, min_agreement=0.8)
        guard.start()
        for sample, label in enumerate([3] * 20 + [1] * 60):
            guard.offer(bytes([5]), label)
            await until(heard, sample + 1)
        guard.stop()
    assert heard.verdicts == [False, True, True, True]
    assert heard.samples[-1] == (True, 0.75)


async def test_a_sample_that_fails_is_dropped_and_the_guard_goes_on() -> None:
    engine, heard = FakeEngine(poison=frozenset({7})), Heard()
    async with running(engine) as batcher:
        guard = guard_of(batcher, heard)
        guard.start()
        guard.offer(b"broken", label=0)
        guard.offer(bytes([7]), label=3)
        guard.offer(bytes([5]), label=1)
        await until(heard, 1)
        guard.stop()
    assert heard.samples == [(True, 1.0)]


async def test_what_waits_is_bounded_and_large_images_are_left_out() -> None:
    async with running(FakeEngine()) as batcher:
        guard = guard_of(batcher, Heard())
        for _ in range(100):
            guard.offer(bytes([5]), label=1)
        guard.offer(bytes(2 << 20), label=1)
        assert len(guard._samples) == 32
        assert all(len(sample.encoded) == 1 for sample in guard._samples)
