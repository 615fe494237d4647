from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from service import errors
from service.app import create_app
from service.error_handlers import STATUS
from service.metrics import OUTCOMES
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle


def tree(root: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("error", list(tree(errors.ServiceError)))
def test_every_error_has_a_row_and_is_drawn_in_the_tree(error: type[errors.ServiceError]) -> None:
    assert STATUS[error].outcome in OUTCOMES
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("error", list(tree(errors.ServiceError)))
def test_every_error_becomes_a_problem(error: type[errors.ServiceError]) -> None:
    app = create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())
    raised = errors.Overloaded("why", retry_after_s=2.3) if error is errors.Overloaded else error("why")

    @app.get("/fail")
    async def fail() -> None:
        raise raised

    with TestClient(app) as client:
        response = client.get("/fail", headers={"X-Request-Id": "r1"})
    row = STATUS[error]
    assert response.status_code == row.status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.pop("type").startswith("urn:skipvit:problem:")
    assert problem == {"title": row.title, "status": row.status, "detail": "why", "request_id": "r1"}
    retry_after = {errors.Overloaded: "3", errors.NotReady: "1"}
    assert response.headers.get("Retry-After") == retry_after.get(error)


def test_an_unforeseen_error_is_a_problem_that_tells_nothing() -> None:
    app = create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a secret")

    with TestClient(app) as client:
        response = client.get("/fail")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
