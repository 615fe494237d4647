"""Two looks: a small input first, a larger one as well where the first answer isn't sure."""

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
from service.second_look import Looked, falls_short, merge, unsure
from service.settings import Settings
from tests.fakes import FILES, FakeEngine, fake_bundle, fake_manifest, graph_document, manifest_document
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


def test_the_second_look_may_be_at_another_size_than_the_full_one() -> None:
    more = {"size_px": 14, "again_px": 42, "sure": 0.96, "looked_again": 0.5, "macs_ratio": 1.5, "accuracy": 0.95}
    dense = {**manifest_document()["calibration"][0], "size_px": 42, "accuracy": 0.96}
    bundle = fake_bundle(
        graphs=[graph_document(size_px) for size_px in (28, 14, 42)],
        calibration=[*manifest_document()["calibration"], dense],
        second_looks=[more],
        files={name: manifest_document()["files"]["model.onnx"] for name in (*FILES, "model-42.onnx")},
    )
    with TestClient(create_app(Settings(guard_ratio=0), bundle=bundle, engine=FakeEngine())) as client:
        (plain_look,) = ask(client, DOUBTFUL, **TWICE)
        assert plain_look["size_px"] == 28
        (larger,) = ask(client, DOUBTFUL, **TWICE, again=42)
        assert (larger["size_px"], larger["first_look"]["size_px"], larger["degraded"]) == (42, 14, False)
        assert larger["macs"]["used"] == SMALL + 113500
        (above,) = ask(client, DOUBTFUL, size=28, threshold=0, sure=0.96, again=42)
        assert (above["size_px"], above["first_look"]["size_px"]) == (42, 28)
        for query, message in (
            ({**TWICE, "again": 56}, "56 is not one of 28, 14, 42"),
            ({**TWICE, "again": 14}, "isn't larger than the first look's 14 px"),
            ({"threshold": 0, "again": 42}, "say with sure"),
        ):
            answer = client.post(URL, content=DOUBTFUL, params=query)
            assert answer.status_code == 422
            assert message in answer.json()["detail"]


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

    def refuse_the_full_size(images: Any, *rest: Any, **more: Any) -> Any:
        if images[0].shape[0] == 28:
            raise error
        return submit(images, *rest, **more)

    monkeypatch.setattr(batcher, "submit_many", refuse_the_full_size)
    doubtful, certain = ask(client, DOUBTFUL, CERTAIN, **TWICE)
    assert (doubtful["size_px"], doubtful["degraded"]) == (14, True)
    assert (certain["size_px"], certain["degraded"]) == (14, False)
    answer = client.post(URL, content=DOUBTFUL, params={**TWICE, "degrade": "false"})
    assert answer.status_code == status


PRESETS = {name: {"size_px": 14, "threshold": 0.0, "sure": sure} for name, sure in (("balanced", 0.96), ("economy", 0))}
FEWER = [
    {
        "size_px": 14,
        "again_px": 28,
        "sure": sure,
        "looked_again": again,
        "macs_ratio": 0.4 + again,
        "accuracy": 0.8 + again / 5,
    }
    for sure, again in ((0.5, 0.1), (0.95, 0.3))
]


@pytest.fixture
def presets() -> Iterator[TestClient]:
    """A service whose default takes two looks; whose cache is on."""
    bundle = fake_bundle(presets=PRESETS, second_looks=FEWER)
    settings = Settings(guard_ratio=0, cache_bytes=1 << 20, min_compute={"balanced": 0.4})
    engine = FakeEngine()
    with TestClient(create_app(settings, bundle=bundle, engine=engine)) as client:
        client.app_state["engine"] = engine
        yield client


def test_a_preset_may_look_twice_and_sure_overrides_it(presets: TestClient) -> None:
    for query in ({}, {"preset": "balanced"}, {"preset": "economy", "sure": 0.96}):
        doubtful, certain = ask(presets, DOUBTFUL, CERTAIN, **query, degrade="false")
        assert (doubtful["size_px"], certain["size_px"]) == (28, 14)
        assert not doubtful["degraded"]
    (once,) = ask(presets, plain(8), sure=0)
    assert once["size_px"] == 14
    (other,) = ask(presets, plain(9), size=14)
    assert (other["size_px"], other["threshold"]) == (14, 0)


def test_a_second_look_is_cached_and_answers_at_once(presets: TestClient) -> None:
    (first,) = ask(presets, DOUBTFUL)
    before = len(sizes(presets))
    (again,) = ask(presets, DOUBTFUL)
    assert len(sizes(presets)) == before
    assert again["cached"]
    assert (again["size_px"], again["predictions"]) == (28, first["predictions"])
    assert not again["degraded"]
    assert 'skipvit_second_looks_total{model="fake"} 1.0' in presets.get("/metrics").text


def test_the_queue_counts_second_looks_before_they_come(presets: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, told = presets.app_state["serving"].model().batcher, list[tuple[int, float, bool]]()
    submit = batcher.submit_many

    def listen(images: Any, *rest: Any, later_macs: float, since_s: float | None) -> Any:
        told.append((images[0].shape[0], later_macs, since_s is not None))
        return submit(images, *rest, later_macs=later_macs, since_s=since_s)

    monkeypatch.setattr(batcher, "submit_many", listen)
    ask(presets, DOUBTFUL, sure=0.95)
    ask(presets, plain(8), sure=0)
    assert told == [(14, pytest.approx(0.3 * FULL), False), (28, 0, True), (14, 0, False)]


def test_load_looks_again_at_fewer_and_says_so_where_that_made_a_difference(presets: TestClient) -> None:
    model = presets.app_state["serving"].model()
    for second in range(1000):  # as if the queue had been too long for minutes
        model.planner._controller.observe(model.batcher.now() + second, 1e6)
    model.planner._controller.observe(model.batcher.now() + 1000, 0.075)
    doubtful, certain = ask(presets, DOUBTFUL, CERTAIN)
    assert (doubtful["size_px"], doubtful["degraded"]) == (14, True)
    assert (certain["size_px"], certain["degraded"]) == (14, False)


def test_who_is_unsure_by_the_probabilities() -> None:
    def computed(logits: list[float], size_px: int = 14) -> Computed:
        return Computed(Choice(size_px, 0.0), answer(logits))

    even, clear = [0.0, 0.0], [0.0, 3.0]  # 0.5, 0.953
    first, manifest = [computed(even), computed(clear), computed(even, 28)], fake_manifest()
    assert unsure(manifest, first, Choice(14, 0.0, 0.5)) == []
    assert unsure(manifest, first, Choice(14, 0.0, 0.51)) == [0]
    assert unsure(manifest, first, Choice(14, 0.0, 1.0)) == [0, 1]


def test_what_falls_short_of_what_was_asked() -> None:
    even, clear, manifest = answer([0.0, 0.0]), answer([0.0, 3.0]), fake_manifest()
    asked = Choice(14, 0.0, 0.9)

    def short(one: Computed, wanted: Choice = asked, before: Computed | None = None) -> bool:
        return falls_short(manifest, Looked(one, before), wanted)

    assert short(Computed(Choice(14, 0.0), even))  # the second look is missing
    assert not short(Computed(Choice(14, 0.0), clear))  # none was due
    assert short(Computed(Choice(14, 0.5), clear))  # less was computed
    assert not short(Computed(Choice(28, 0.0), even))  # the second look itself
    assert short(Computed(Choice(28, 0.5), even))
    assert not short(Computed(Choice(14, 0.0), even), Choice(14, 0.0))
    doubt, skipped = Computed(Choice(14, 0.0), even), Computed(Choice(28, 0.5), clear)
    assert short(skipped, before=doubt)  # a lesser second look than was due, however sure it is
    assert not short(skipped, before=Computed(Choice(14, 0.0), clear))  # none was due
    assert not short(Computed(Choice(28, 0.0), clear), before=doubt)


def test_two_looks_take_the_time_of_both() -> None:
    first = Computed(Choice(14, 0.0), answer([0.0], queue_s=1.0, inference_s=2.0), cached=True)
    found = merge(first, Computed(Choice(28, 0.0), answer([1.0], queue_s=0.25, inference_s=0.5)))
    assert found.computed.answer.logits.tolist() == [1.0]
    assert (found.computed.answer.queue_s, found.computed.answer.inference_s) == (1.25, 2.5)
    assert not found.computed.cached
    assert found.before is first


def answer(logits: list[float], *, queue_s: float = 0.0, inference_s: float = 0.0) -> Answer:
    kept = np.ones((3, 4), np.bool_)
    return Answer(np.array(logits, np.float32), kept, batch_size=1, queue_s=queue_s, inference_s=inference_s)
