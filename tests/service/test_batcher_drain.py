from __future__ import annotations

import asyncio

import pytest

from service.errors import NotReady
from tests.fakes import FakeEngine
from tests.service.test_batcher import busy, image, running


async def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    engine = FakeEngine()
    async with running(engine, max_batch_size=1) as batcher:
        accepted = [await busy(engine, batcher), *(batcher.submit(image(value), 0.0, None) for value in range(3))]
        draining = asyncio.create_task(batcher.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            batcher.submit(image(4), 0.0, None)
        engine.release()
        assert await draining
        assert all(future.done() and future.exception() is None for future in accepted)


async def test_draining_a_hung_engine_ends_and_fails_what_is_left() -> None:
    engine = FakeEngine()
    async with running(engine, max_batch_size=1) as batcher:
        accepted = [await busy(engine, batcher), *(batcher.submit(image(value), 0.0, None) for value in range(2))]
        assert not await batcher.drain(0.001)
        assert all(isinstance(future.exception(), NotReady) for future in accepted)


async def test_draining_says_that_accepted_work_was_given_up_also_if_its_run_then_ends() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        accepted = await busy(engine, batcher)
        draining = asyncio.create_task(batcher.drain(10))
        await asyncio.sleep(0)
        batcher.abandon()
        assert not await draining
    assert isinstance(accepted.exception(), NotReady)
    assert engine.terminated == 1
