"""The Open Inference Protocol as a target, against the real service; labels as they are compared."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtest import data
from loadtest.arrivals import Arrivals
from loadtest.mix import Mix
from loadtest.run import Job, run
from loadtest.targets import Oip, TargetError, check_labels, plain
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.loadtest.servers import LABELS
from tests.service.live import live_server


async def test_an_oip_server_is_measured_with_binary_tensors(images: Path) -> None:
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        target = Oip(f"http://127.0.0.1:{live.port}", "fake", 28, LABELS)
        job = Job(Mix(points=(("threshold=0.5", 1.0),)), Arrivals("poisson", 40, 0.5), slo_s=30)
        model = await asyncio.to_thread(check_labels, target, data.load(str(images)))
        found = await asyncio.to_thread(run, job, data.load(str(images)), target, quiet=True)
    assert model["name"] == "fake"
    assert set(found.summary["outcomes"]) == {"ok"}
    assert found.summary["top1"]["value"] == 1
    assert found.summary["phases"] is None  # the protocol doesn't tell


async def test_a_model_that_isnt_there_is_said() -> None:
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        target = Oip(f"http://127.0.0.1:{live.port}", "other", 28, LABELS)
        with pytest.raises(TargetError, match="404"):
            await asyncio.to_thread(target.describe)


def test_labels_are_the_same_in_any_writing() -> None:
    assert plain(" Maple Tree ") == plain("maple_tree") == plain("maple-tree")
