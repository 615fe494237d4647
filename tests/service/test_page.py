from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.routes.page import STATIC
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle

SOURCES = sorted(file for file in STATIC.iterdir() if file.is_file())
PICTURES = sorted((STATIC / "samples").iterdir())
MAX_PAGE_BYTES = 65_000
MAX_PICTURES_BYTES = 40_000


def test_the_page_is_served_and_its_headers_forbid_what_it_does_not_need(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert client.head("/").status_code == 200


@pytest.mark.parametrize("file", [*SOURCES, *PICTURES], ids=lambda file: file.name)
def test_every_file_is_served_with_its_type_and_the_same_headers(client: TestClient, file: Path) -> None:
    path = f"/static/{file.relative_to(STATIC)}"
    response = client.get(path)
    assert response.status_code == 200
    kind = {"css": "text/css", "html": "text/html", "js": "text/javascript", "png": "image/png", "svg": "image/svg+xml"}
    assert response.headers["content-type"].split(";")[0] == kind[path.rsplit(".", 1)[1]]
    assert response.headers["content-security-policy"] == client.get("/").headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_unchanged_files_are_not_sent_again(client: TestClient) -> None:
    for path in ("/", "/static/page.js"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""
        assert "content-security-policy" in again.headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/samples",
        "/static/absent.js",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/samples/../../settings.py",
        "/static//etc/passwd",
        "/index.html",
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"] == "Not Found"


def test_the_files_can_only_be_read(client: TestClient) -> None:
    assert client.post("/").status_code == 405
    assert client.put("/static/page.js").status_code == 405


def test_the_page_is_small() -> None:
    assert sum(file.stat().st_size for file in SOURCES) < MAX_PAGE_BYTES
    assert sum(file.stat().st_size for file in PICTURES) < MAX_PICTURES_BYTES


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_no_file_names_another_origin_or_holds_inline_code(file: Path) -> None:
    text = file.read_text()
    allowed = "http://www.w3.org/2000/svg"  # a namespace, which nothing loads
    assert not re.search(r"(https?:)?//[\w-]+\.\w+", text.replace(allowed, ""))
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=\"|javascript:", text)


def test_every_file_that_the_page_names_exists() -> None:
    text = "".join(file.read_text() for file in SOURCES)
    named = re.findall(r'static/([\w./-]+\.\w+)"', text) + re.findall(r'from "\./([\w-]+\.js)"', text)
    assert len(named) > 10
    assert [name for name in named if not (STATIC / name).is_file()] == []
    (samples,) = re.findall(r"const SAMPLES = \[(.*)\]", text)
    assert sorted(re.findall(r'"(\w+)"', samples)) == [file.stem for file in PICTURES]


def test_the_page_is_there_before_the_model_is() -> None:
    client = TestClient(create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine()))  # its lifespan hasn't begun
    assert client.get("/").status_code == 200
    assert client.get("/v1/models").status_code == 503


def test_the_documentation_loads_its_viewer_from_here(client: TestClient) -> None:
    text = client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert loaded
    for url in loaded:
        assert url.startswith("/")
        assert client.get(url).status_code == 200
