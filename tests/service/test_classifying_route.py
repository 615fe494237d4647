from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from starlette.testclient import TestClient

from service.app import create_app
from service.routes.classifying import ClassifyingRoute
from service.schemas import ClassifyQuery
from service.serving import ServingDep
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.images import plain

URL = "/v1/classify"
Seen = list[tuple[ClassifyQuery, int | None]]


def app() -> FastAPI:
    return create_app(Settings(guard_ratio=0.0), bundle=fake_bundle(), engine=FakeEngine())


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def noting(seen: Seen) -> Iterator[TestClient]:
    """An application with one more route, which notes the parameters that it is called with."""
    router = APIRouter(route_class=ClassifyingRoute)

    @router.post("/note")
    async def note(
        request: Request,
        serving: ServingDep,
        query: Annotated[ClassifyQuery, Query()],
        x_request_timeout_ms: Annotated[int | None, Header(ge=1)] = None,
    ) -> Response:
        seen.append((query, x_request_timeout_ms))
        return Response(status_code=204)

    noting = app()
    noting.include_router(router)
    with TestClient(noting) as client:
        yield client


def test_the_same_query_is_read_once_and_another_one_has_its_own_parameters(noting: TestClient, seen: Seen) -> None:
    for query in ("threshold=0.25", "threshold=0.5", "threshold=0.25", "threshold=0.250"):
        assert noting.post(f"/note?{query}").status_code == 204
    first, second, again, other = (query for query, _ in seen)
    assert first is again
    assert other is not first
    assert (first.threshold, second.threshold, other.threshold) == (0.25, 0.5, 0.25)


def test_the_deadline_is_told_apart_too(noting: TestClient, seen: Seen) -> None:
    for timeout_ms in (100, 200, 100):
        noting.post("/note", headers={"X-Request-Timeout-Ms": str(timeout_ms)})
    noting.post("/note")
    assert [timeout_ms for _, timeout_ms in seen] == [100, 200, 100, None]


def test_what_is_wrong_is_said_every_time(noting: TestClient, seen: Seen) -> None:
    for _ in range(3):
        response = noting.post("/note?threshold=2")
        assert response.status_code == 422
        assert "threshold" in response.json()["detail"]
        assert noting.post("/note", headers={"X-Request-Timeout-Ms": "0"}).status_code == 422
    assert seen == []


def test_the_oldest_of_many_and_long_ones_are_not_kept(noting: TestClient, seen: Seen) -> None:
    long = "threshold=0.5" + 300 * "0"
    for query in (*(f"threshold={step / 10_000}" for step in range(1025)), "threshold=0.0", long, long):
        assert noting.post(f"/note?{query}").status_code == 204
    assert seen[0][0] is not seen[1025][0]  # it was read again: 1,024 others had come
    assert seen[1026][0] is not seen[1027][0]


def test_parameters_that_are_shared_cannot_be_changed(noting: TestClient, seen: Seen) -> None:
    noting.post("/note?threshold=0.25")
    with pytest.raises(ValueError, match="frozen"):
        seen[0][0].threshold = 0.5  # type: ignore[misc]


def test_a_request_whose_query_is_known_is_counted_and_refused_like_any_other() -> None:
    with TestClient(app()) as client:
        for _ in range(2):
            assert client.post(f"{URL}?threshold=0.125", content=plain()).status_code == 200
        assert client.post(f"{URL}?threshold=0.125", content=b"text").status_code == 415
        metrics = client.get("/metrics").text
    assert 'skipvit_requests_total{model="fake",outcome="ok"} 2.0' in metrics
    assert 'skipvit_requests_total{model="fake",outcome="invalid"} 1.0' in metrics
    response = TestClient(app()).post(f"{URL}?threshold=0.125", content=plain())  # whose lifespan hasn't begun
    assert response.status_code == 503
