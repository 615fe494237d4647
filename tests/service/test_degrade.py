"""Less work before no work, over HTTP: lowered by load, lowered for a deadline, refused, cached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.served_model import ServedModel
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.images import plain
from tests.service.test_ops import value

URL = "/v1/classify"


class App:
    """A client and the model behind it."""

    def __init__(self, client: TestClient, model: ServedModel) -> None:
        self.client = client
        self.model = model

    def overload(self) -> None:
        """As if the queue had been too long for minutes."""
        for second in range(1000):
            self.model.planner._controller.observe(self.model.batcher.now() + second, 1e6)
        self.model.planner._controller.observe(self.model.batcher.now() + 1000, 0.075)

    def slow(self, seconds: float) -> None:
        """As if an image at threshold 0 took so long."""
        self.model.batcher._cost._fit.add(53500, seconds)  # type: ignore[attr-defined]

    def ask(self, query: str = "", **headers: str) -> Any:
        return self.client.post(f"{URL}{query}", content=plain(3), headers=headers)

    def result(self, query: str = "") -> dict[str, Any]:
        answer = self.ask(query)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()["results"][0]
        return result


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    settings = Settings(guard_ratio=0, **getattr(request, "param", {}))
    application = create_app(settings, bundle=fake_bundle(), engine=FakeEngine())
    with TestClient(application) as client:
        yield App(client, client.app_state["serving"].model())


def test_without_load_nobody_is_lowered(app: App) -> None:
    assert not app.result()["degraded"]


@pytest.mark.parametrize(("query", "size_px", "threshold"), [("", 14, 0.325), ("?preset=balanced", 14, 0.325)])
def test_load_lowers_presets(app: App, query: str, size_px: int, threshold: float) -> None:
    app.overload()
    found = app.result(query)
    assert found["degraded"]
    assert (found["size_px"], found["threshold"]) == (size_px, pytest.approx(threshold, abs=0.05))


def test_load_lowers_a_compute_share(app: App) -> None:
    app.overload()
    assert app.result("?compute=0.9")["degraded"]


@pytest.mark.parametrize("query", ["?threshold=0", "?size=28", "?degrade=false", "?preset=full&degrade=false"])
def test_who_names_a_threshold_or_a_size_or_opts_out_gets_it(app: App, query: str) -> None:
    asked = app.result(query)
    app.overload()
    assert app.result(query) == asked
    assert not asked["degraded"]


def test_who_allows_it_is_lowered_from_a_threshold_too(app: App) -> None:
    app.overload()
    assert app.result("?threshold=0&degrade=true")["degraded"]


@pytest.mark.parametrize("app", [{"adaptive": False}], indirect=True)
def test_switched_off_nobody_is_lowered(app: App) -> None:
    app.overload()
    assert not app.result()["degraded"]


def test_degraded_answers_and_the_level_are_counted(app: App) -> None:
    app.overload()
    app.ask()
    app.ask("?degrade=false")
    text = app.client.get("/metrics").text
    assert 'skipvit_degraded_requests_total{model="fake"} 1.0' in text
    (level,) = (line.split()[1] for line in text.splitlines() if line.startswith("skipvit_degradation_level "))
    assert float(level) > 0.9


def test_a_deadline_that_cant_be_met_is_refused_before_the_work(app: App) -> None:
    app.slow(2.0)
    answer = app.ask("?threshold=0", **{"X-Request-Timeout-Ms": "500"})
    assert answer.status_code == 504
    assert "inference alone takes about 2000 ms" in answer.json()["detail"]


def test_who_allows_it_gets_less_in_time(app: App) -> None:
    app.slow(2.0)
    answer = app.ask("?threshold=0&degrade=true", **{"X-Request-Timeout-Ms": "1000"})
    (result,) = answer.json()["results"]
    assert result["degraded"]
    assert result["macs"]["ratio"] < 0.5


@pytest.mark.parametrize("app", [{"cache_bytes": 100_000}], indirect=True)
def test_an_image_seen_before_is_marked_and_costs_nothing(app: App) -> None:
    first = app.result("?preset=balanced")
    again = app.ask("?preset=economy").json()
    assert "cached" not in first
    assert again["results"][0]["cached"] is True
    assert again["results"][0]["threshold"] == first["threshold"]
    assert again["timing_ms"]["inference"] == 0
    text = app.client.get("/metrics").text
    assert 'skipvit_batches_total{model="fake",reason="idle"} 1.0' in text
    assert 'skipvit_cache_requests_total{found="hit",model="fake"} 1.0' in text
    assert 'skipvit_patches_total{layer="0",model="fake"} 16.0' in text
    assert 1000 < value(app.client, 'skipvit_cache_bytes{model="fake"}') < 3000


@pytest.mark.parametrize("app", [{"cache_bytes": 100_000}], indirect=True)
def test_a_cached_answer_that_is_as_good_as_asked_isnt_degraded(app: App) -> None:
    app.result("?preset=full")
    app.overload()
    found = app.result("?preset=balanced")
    assert found["cached"]
    assert not found["degraded"]


@pytest.mark.parametrize("app", [{"cache_bytes": 100_000}], indirect=True)
@pytest.mark.parametrize("control", ["no-cache", "max-age=0, No-Store"])
def test_who_wants_it_computed_now_gets_that(app: App, control: str) -> None:
    app.result()
    assert "cached" not in app.ask(**{"Cache-Control": control}).json()["results"][0]


@pytest.mark.parametrize("app", [{"cache_bytes": 100_000}], indirect=True)
def test_an_overlay_is_drawn_anew(app: App) -> None:
    app.result()
    assert app.result("?explain=overlay")["overlay"].startswith("data:image/png")


def infer(app: App, parameters: dict[str, Any]) -> dict[str, Any]:
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28, 3], "data": [3] * (28 * 28 * 3)}
    answer = app.client.post("/v2/models/fake/infer", json={"parameters": parameters, "inputs": [images]})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def kept(document: dict[str, Any]) -> int:
    return sum(next(output["data"] for output in document["outputs"] if output["name"] == "kept"))


@pytest.mark.parametrize("parameters", [{}, {"threshold": 0.5, "degrade": True}])
def test_load_raises_the_threshold_of_tensors_and_says_so(app: App, parameters: dict[str, Any]) -> None:
    before = infer(app, parameters)
    app.overload()
    after = infer(app, parameters)
    assert "parameters" not in before
    assert after["parameters"] == {"degraded": True}
    assert kept(after) < kept(before)


@pytest.mark.parametrize("parameters", [{"threshold": 0.5}, {"degrade": False}])
def test_tensors_with_a_threshold_of_their_own_are_left_alone(app: App, parameters: dict[str, Any]) -> None:
    before = infer(app, parameters)
    app.overload()
    assert infer(app, parameters) == before


def test_tensors_whose_deadline_cant_be_met_are_refused(app: App) -> None:
    app.slow(2.0)
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28, 3], "data": [3] * (28 * 28 * 3)}
    wanted = {"parameters": {"timeout": 500_000, "threshold": 0.0}, "inputs": [images]}
    answer = app.client.post("/v2/models/fake/infer", json=wanted)
    assert answer.status_code == 504
    assert "inference alone" in answer.json()["error"]
