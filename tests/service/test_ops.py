from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import served_model
from service.app import create_app
from service.artifact import Manifest
from service.cost import CostModel
from service.metrics import OUTCOMES
from service.planner import Planner
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle, fake_manifest
from tests.images import plain


def value(client: TestClient, sample: str) -> float:
    rows = client.get("/metrics").text.splitlines()
    (found,) = (row for row in rows if row.startswith(sample + " "))
    return float(found.split()[-1])


def test_a_started_service_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_draining_fails_readiness_but_not_liveness_nor_traffic(client: TestClient) -> None:
    client.app.state.lifecycle.begin_drain()  # type: ignore[attr-defined]
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["Retry-After"] == "1"
    assert client.get("/healthz").status_code == 200
    assert client.post("/v1/classify", content=plain()).status_code == 200


def test_before_its_lifespan_the_service_is_not_ready() -> None:
    app = create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())
    client = TestClient(app)
    for path in ("/readyz", "/healthz", "/v1/models"):
        assert client.get(path).status_code == 503


def test_who_has_begun_to_drain_never_becomes_ready() -> None:
    app = create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())
    app.state.lifecycle.begin_drain()
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 503


def test_models_are_listed_and_shown_with_their_calibration(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["precision"] == FakeEngine.precision
    assert model["name"] == "fake"
    assert model["sizes_px"] == [28, 14]
    assert client.get("/v1/models/fake").json() == fake_manifest().model_dump(mode="json")
    assert client.get("/v1/models/other").status_code == 404


def test_times_are_shown_and_planned_with_as_they_are_in_the_engines_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, bundle = FakeEngine(), fake_bundle(packing={"float32": 0.0, "int8": 0.35})
    engine.precision = "int8"
    told: list[Manifest] = []

    def noted(make: Callable[..., Any], manifest: Manifest, *rest: Any, **more: Any) -> Any:
        told.append(manifest)
        return make(manifest, *rest, **more)

    for make in (CostModel, Planner):
        monkeypatch.setattr(served_model, make.__name__, partial(noted, make))
    with TestClient(create_app(Settings(), bundle=bundle, engine=engine)) as client:
        shown = client.get("/v1/models/fake").json()
    assert {(one["size_px"], one["threshold"]): one["time_ratio"] for one in shown["calibration"]}[28, 0.5] == 0.95
    assert [one.model_dump(mode="json") for one in told] == [shown, shown]


def test_the_framework_refuses_with_problems_too(client: TestClient) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/classify", 405), ("DELETE", "/healthz", 405)):
        response = client.request(method, path, headers={"X-Request-Id": "r1"})
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
        assert response.json()["request_id"] == "r1"
    assert client.get("/v1/classify").headers["Allow"] == "POST"


def test_every_metric_of_the_contract_is_there(client: TestClient) -> None:
    client.post("/v1/classify", content=plain())
    families = {
        tuple(line.split()[2:])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("# TYPE skipvit")
    }
    counters = ("requests", "patches", "skipped_patches", "batches")
    histograms = (
        *(f"{phase}_duration_seconds" for phase in ("request", "decode", "queue", "inference")),
        *("batch_size", "skipped_patches", "macs_ratio", "effective_threshold"),
    )
    gauges = ("pending_requests", "pending_work_seconds", "degradation_level", "model_info")
    assert families >= {
        *((f"skipvit_{name}_total", "counter") for name in counters),
        *((f"skipvit_{name}", "histogram") for name in histograms),
        *((f"skipvit_{name}", "gauge") for name in gauges),
    }


def test_an_answer_is_recorded_with_what_it_cost(client: TestClient) -> None:
    client.post("/v1/classify?threshold=0.25", content=plain())
    assert value(client, 'skipvit_requests_total{model="fake",outcome="ok"}') == 1
    assert value(client, 'skipvit_patches_total{layer="2",model="fake"}') == 16
    assert value(client, 'skipvit_skipped_patches_total{layer="0",model="fake"}') == 0
    assert value(client, 'skipvit_skipped_patches_total{layer="2",model="fake"}') == 4
    assert value(client, "skipvit_skipped_patches_sum") == 4
    assert value(client, "skipvit_effective_threshold_sum") == 0.25
    assert value(client, "skipvit_macs_ratio_sum") == pytest.approx(45500 / 53500)
    assert value(client, 'skipvit_batches_total{model="fake",reason="idle"}') == 1
    for histogram in ("request", "decode", "queue", "inference"):
        assert value(client, f"skipvit_{histogram}_duration_seconds_count") == 1


def test_every_refusal_is_counted_once_as_invalid(client: TestClient) -> None:
    for query, body in (("threshold=2", plain()), ("nonsense=1", plain()), ("size=3", plain()), ("", b"text")):
        client.post(f"/v1/classify?{query}", content=body)
    client.post("/v1/classify", content=plain(66))
    client.post("/v1/classify?model=other", content=plain())
    assert value(client, 'skipvit_requests_total{model="fake",outcome="invalid"}') == 4
    assert value(client, 'skipvit_requests_total{model="fake",outcome="error"}') == 1
    assert value(client, 'skipvit_requests_total{model="unknown",outcome="invalid"}') == 1
    assert value(client, "skipvit_request_duration_seconds_count") == 6


def test_outcomes_are_there_before_they_happen(client: TestClient) -> None:
    for outcome in OUTCOMES:
        assert value(client, f'skipvit_requests_total{{model="fake",outcome="{outcome}"}}') == 0


def test_probes_and_unknown_paths_are_not_counted(client: TestClient) -> None:
    for path in ("/healthz", "/nothing", "/metrics", "/v1/models"):
        client.get(path)
    assert value(client, "skipvit_request_duration_seconds_count") == 0
