"""Two looks: a small input first, the full one as well where the first answer isn't sure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.batch import Answer
from service.budget import Choice
from service.cache import Computed
from service.errors import DeadlinePassed, NotReady, Overloaded
from service.second_look import merge, unsure
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.images import plain

URL = "/v1/classify"
DOUBTFUL, CERTAIN = plain(7), plain(203)  # both "dog", with probabilities of 0.949 and 0.977
TWICE = {"size": 14, "threshold": 0, "sure": 0.96}
SMALL, FULL = 17500, 53500  # MACs


@pytest.fixture(params=[0, 1 << 20], ids=["no cache", "cache"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    settings = Settings(guard_ratio=0, cache_bytes=request.param)
    engine = FakeEngine()
    with TestClient(create_app(settings, bundle=fake_bundle(), engine=engine)) as client:
        client.app_state["engine"] = engine
        yield client


def sizes(client: TestClient) -> list[int]:
    """Input sizes of the batches that ran, those of the warm-up aside."""
    engine: FakeEngine = client.app_state["engine"]
    return engine.sizes


def ask(client: TestClient, *images: bytes, **query: Any) -> list[dict[str, Any]]:
    files = [("image", ("x.png", image, "image/png")) for image in images]
    answer = client.post(URL, files=files, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def test_who_isnt_sure_is_looked_at_again_at_the_full_size(client: TestClient) -> None:
    before = len(sizes(client))
    doubtful, certain = ask(client, DOUBTFUL, CERTAIN, **TWICE)
    assert sizes(client)[before:] in ([14, 28], [14, 14, 28])
    assert (doubtful["size_px"], certain["size_px"]) == (28, 14)
    assert doubtful["first_look"] == {
        "prediction": {"index": 3, "label": "dog", "probability": pytest.approx(0.949, abs=1e-3)},
        "threshold": 0,
        "size_px": 14,
    }
    assert "first_look" not in certain
    assert (doubtful["macs"]["used"], certain["macs"]["used"]) == (SMALL + FULL, SMALL)
    assert doubtful["macs"]["ratio"] == pytest.approx((SMALL + FULL) / FULL)
    assert not doubtful["degraded"]
    assert not certain["degraded"]
    assert 'skipvit_second_looks_total{model="fake"} 1.0' in client.get("/metrics").text


def test_the_second_look_keeps_the_threshold_and_is_the_one_that_is_shown(client: TestClient) -> None:
    (found,) = ask(client, DOUBTFUL, size=14, threshold=0.25, sure=0.96, explain="mask")
    assert (found["size_px"], found["threshold"]) == (28, 0.25)
    assert [len(layer) for layer in found["mask"]] == [16, 16, 16]
    assert found["skipped_patches"]["per_layer"] == [0, 4, 4]
    picture = client.post("/v1/explain", content=DOUBTFUL, params={"size": 14, "threshold": 0.25, "sure": 0.96})
    assert picture.content == client.post("/v1/explain", content=DOUBTFUL, params={"threshold": 0.25}).content


@pytest.mark.parametrize("query", [{"sure": 0}, {"sure": 0.9}, {}, {"size": 28, "sure": 1}])
def test_one_look_is_enough_where_it_is_sure_or_already_full(client: TestClient, query: dict[str, Any]) -> None:
    (found,) = ask(client, DOUBTFUL, **{"size": 14, "threshold": 0, **query})
    assert found["size_px"] == query.get("size", 14)
    assert "first_look" not in found


@pytest.mark.parametrize(
    ("error", "status"),
    [(Overloaded("too much", retry_after_s=1.0), 429), (DeadlinePassed("too late"), 504), (NotReady("draining"), 503)],
)
def test_a_second_look_that_there_is_no_room_for_is_given_up(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    batcher = client.app_state["serving"].model().batcher
    submit = batcher.submit_many

    def refuse_the_full_size(images: Any, *rest: Any) -> Any:
        if images[0].shape[0] == 28:
            raise error
        return submit(images, *rest)

    monkeypatch.setattr(batcher, "submit_many", refuse_the_full_size)
    doubtful, certain = ask(client, DOUBTFUL, CERTAIN, **TWICE)
    assert (doubtful["size_px"], doubtful["degraded"]) == (14, True)
    assert (certain["size_px"], certain["degraded"]) == (14, False)
    answer = client.post(URL, content=DOUBTFUL, params={**TWICE, "degrade": "false"})
    assert answer.status_code == status


def test_who_is_unsure_by_the_probabilities() -> None:
    def computed(logits: list[float], size_px: int = 14) -> Computed:
        return Computed(Choice(size_px, 0.0), answer(logits))

    even, clear = [0.0, 0.0], [0.0, 3.0]  # 0.5, 0.953
    first = [computed(even), computed(clear), computed(even, 28)]
    assert unsure(first, 0.5, 28) == []
    assert unsure(first, 0.51, 28) == [0]
    assert unsure(first, 1.0, 28) == [0, 1]


def test_two_looks_take_the_time_of_both() -> None:
    first = Computed(Choice(14, 0.0), answer([0.0], queue_s=1.0, inference_s=2.0), cached=True)
    found = merge(first, Choice(28, 0.0), answer([1.0], queue_s=0.25, inference_s=0.5))
    assert found.computed.answer.logits.tolist() == [1.0]
    assert (found.computed.answer.queue_s, found.computed.answer.inference_s) == (1.25, 2.5)
    assert not found.computed.cached
    assert found.before is first


def answer(logits: list[float], *, queue_s: float = 0.0, inference_s: float = 0.0) -> Answer:
    kept = np.ones((3, 4), np.bool_)
    return Answer(np.array(logits, np.float32), kept, batch_size=1, queue_s=queue_s, inference_s=inference_s)
