"""The soak of `make soak`, for seconds: that it runs, that it can fail, that the service stands it."""

from __future__ import annotations

import json
import time
from itertools import repeat

import httpx
import pytest

from tests import soak
from tests.images import plain
from tests.service.process import FAKE, running


def test_seconds_of_mixed_traffic_are_all_answered_as_they_deserve(capsys: pytest.CaptureFixture[str]) -> None:
    code = soak.main(["--fake", "--duration-s", "5", "--concurrency", "4"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0, result
    assert result["answers"] > 50
    assert result["clients_left"] > 0
    assert {"200", "415", "422"} <= set(result["statuses"])
    assert not {"500", "502"} & set(result["statuses"])


@pytest.mark.parametrize("path", ["/v1/classify", "/nowhere"])
async def test_an_answer_that_isnt_deserved_is_noticed(path: str) -> None:
    tally, question = soak.Tally(), soak.Question(path, {"content": plain()}, frozenset({422}))
    with running(FAKE, {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "0"}) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            await soak.ask_until(time.monotonic() + 0.5, client, repeat(question), tally)
            assert len(tally.unexpected) == tally.statuses.total() > 0
            server.process.kill()
            server.process.wait()
            before = len(tally.unexpected)
            await soak.ask_until(time.monotonic() + 0.1, client, repeat(question), tally)
            assert len(tally.unexpected) > before  # no answer at all


def test_drift_compares_the_first_third_with_the_last() -> None:
    samples = [soak.Sample(at_s, 1.0 if at_s < 40 else 5.0) for at_s in range(10, 100)]
    assert soak.drift(samples, 10, 100, 99) == (1.0, 5.0)
