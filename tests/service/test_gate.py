from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.routing import Route
from starlette.testclient import TestClient

from service.api_keys import make_key
from service.app import create_app
from service.gate import is_open
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.images import plain

KEY, LINE = make_key("alice")
BOB, BOB_LINE = make_key("bob")
OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")


@pytest.fixture
def locked() -> Iterator[TestClient]:
    settings = Settings(api_keys=SecretStr(f"{LINE},{BOB_LINE}"))
    with TestClient(create_app(settings, bundle=fake_bundle(), engine=FakeEngine())) as client:
        yield client


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}]
)
def test_a_known_key_lets_in(locked: TestClient, headers: dict[str, str]) -> None:
    assert locked.post("/v1/classify", content=plain(), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": LINE.partition(":")[2]},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"},  # what is said first counts
    ],
)
def test_any_other_gets_401_as_a_problem(locked: TestClient, headers: dict[str, str]) -> None:
    response = locked.post("/v1/classify", content=plain(), headers={**headers, "X-Request-Id": "r1"})
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="skipvit"'
    assert response.headers["X-Request-Id"] == "r1"
    assert response.json()["request_id"] == "r1"
    assert "alice" not in response.text


def test_an_unknown_key_is_said_to_be_one(locked: TestClient) -> None:
    assert locked.get("/v1/models").json()["detail"].startswith("an API key is needed, as the header")
    detail = locked.get("/v1/models", headers={"X-API-Key": "nobody's"}).json()["detail"]
    assert detail.startswith("the API key isn't known")


def test_under_v2_the_refusal_speaks_the_protocol(locked: TestClient) -> None:
    response = locked.get("/v2/models/fake")
    assert response.status_code == 401
    assert set(response.json()) == {"error"}
    assert response.headers["WWW-Authenticate"]


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_the_description_are_open(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_every_route_is_either_meant_to_be_open_or_locked(locked: TestClient) -> None:
    """A route that is added is locked, unless somebody adds it to this list as well."""
    meant = {*OPEN, "/", "/docs/oauth2-redirect", "/redoc"}
    document = locked.get("/openapi.json", headers={"X-API-Key": KEY}).json()
    paths = {
        *document["paths"],
        "/metrics",
        "/nothing",
        "/healthz/",
        "/static",
        "/v2/health",
        "/v2/healthz",
    }
    for path in paths - meant:
        assert not is_open(path), path
        assert locked.get(path.replace("{name}", "fake").replace("{version}", "1")).status_code == 401, path
    mounted = {route.path for route in locked.app.routes if isinstance(route, Route)}  # type: ignore[attr-defined]
    assert {path for path in mounted if is_open(path)} <= meant


def test_requests_are_counted_by_the_keys_name_and_never_by_the_key(locked: TestClient) -> None:
    for key, times in ((KEY, 2), (BOB, 1), ("guess", 3)):
        for _ in range(times):
            locked.get("/v1/models", headers={"X-API-Key": key})
    text = locked.get("/metrics", headers={"X-API-Key": BOB}).text
    for name, times in (("alice", 2), ("bob", 1), ("unknown", 3)):
        assert f'skipvit_api_key_requests_total{{key="{name}"}} {times}.0' in text
    for secret in (KEY, BOB, "guess", LINE.partition(":")[2]):
        assert secret not in text


def test_a_file_of_keys_locks_too(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(LINE)
    app = create_app(Settings(api_keys_file=path), bundle=fake_bundle(), engine=FakeEngine())
    with TestClient(app) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"X-API-Key": KEY}).status_code == 200


def test_a_long_header_is_431_although_it_arrived_at_once(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"X-Long": "x" * 20_000})
    assert response.status_code == 431
    assert response.headers["content-type"] == "application/problem+json"
    assert set(client.get("/v2", headers={"X-Long": "x" * 20_000}).json()) == {"error"}


def test_other_sites_are_kept_out_unless_they_are_named(client: TestClient) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=asked).headers
    assert client.options("/v1/classify", headers=asked).status_code == 405
    settings = Settings(cors_origins="https://a.example, https://b.example", api_keys=SecretStr(LINE))
    with TestClient(create_app(settings, bundle=fake_bundle(), engine=FakeEngine())) as named:
        preflight = named.options(
            "/v1/classify", headers={**asked, "Access-Control-Request-Headers": "x-api-key, cache-control"}
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        refused = named.get("/v1/models", headers=asked)  # the page must be able to read why
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        answer = named.get("/v1/models", headers={**asked, "X-API-Key": KEY})
        assert "server-timing" in answer.headers["access-control-expose-headers"].lower()
        other = named.get("/v1/models", headers={"Origin": "https://c.example", "X-API-Key": KEY})
        assert "access-control-allow-origin" not in other.headers


def test_the_document_tells_which_paths_need_a_key(client: TestClient, locked: TestClient) -> None:
    paths = locked.get("/openapi.json").json()["paths"]
    assert paths["/v1/classify"]["post"]["security"] == [{"key": []}, {"bearer": []}]
    assert "401" in paths["/v1/classify"]["post"]["responses"]
    assert "security" not in paths["/healthz"]["get"]
    free = client.get("/openapi.json").json()
    assert "securitySchemes" not in free["components"]
    assert "401" not in free["paths"]["/v1/classify"]["post"]["responses"]
