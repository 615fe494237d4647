from __future__ import annotations

import io
import json
import logging
import logging.config
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.api_keys import make_key
from service.app import create_app
from service.logs import logging_config
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.images import plain


@contextmanager
def served(**changes: Any) -> Iterator[tuple[TestClient, Callable[[], list[str]]]]:
    """A client of an application with these settings, and what was logged since its start, by line."""
    settings = Settings(**changes)
    stream = io.StringIO()
    config = logging_config(settings.log_format)
    config["handlers"]["stderr"]["stream"] = stream
    logging.config.dictConfig(config)
    app = create_app(settings, bundle=fake_bundle(), engine=FakeEngine(poison=frozenset({66})))
    with TestClient(app) as client:
        begun = len(stream.getvalue().splitlines())
        yield client, lambda: stream.getvalue().splitlines()[begun:]


def objects(lines: list[str], logger: str = "skipvit.access") -> list[dict[str, Any]]:
    return [entry for entry in map(json.loads, lines) if entry["logger"] == logger]


def test_a_request_is_one_json_line_with_what_it_cost() -> None:
    key, line = make_key("alice")
    with served(log_format="json", api_keys=SecretStr(line)) as (client, lines):
        headers = {"X-Request-Id": "r1", "X-API-Key": key}
        answer = client.post("/v1/classify?threshold=0.25", content=plain(), headers=headers).json()
        (entry,) = objects(lines())
    assert entry["time"].endswith("+00:00")
    assert entry["level"] == "INFO"
    expected = {"request_id": "r1", "method": "POST", "path": "/v1/classify", "status": 200}
    expected |= {"model": "fake", "outcome": "ok", "api_key": "alice"}
    expected |= {"threshold": 0.25, "size_px": 28, "images": 1, "cached": 0, "degraded": False, "batch_size": 1}
    assert {name: entry[name] for name in expected} == expected
    assert entry["macs_ratio"] == pytest.approx(answer["results"][0]["macs"]["ratio"], abs=1e-4)
    for phase in ("decode", "queue", "inference"):
        assert entry[f"{phase}_ms"] == pytest.approx(answer["timing_ms"][phase], abs=1e-3)
    assert entry["duration_ms"] >= entry["decode_ms"] + entry["queue_ms"] + entry["inference_ms"]
    assert key not in "".join(lines())


def test_the_protocols_requests_have_their_cost_too() -> None:
    tensor = {"name": "images", "shape": [1, 28, 28, 3], "datatype": "UINT8", "data": [7] * (28 * 28 * 3)}
    with served(log_format="json") as (client, lines):
        assert client.post("/v2/models/fake/infer", json={"inputs": [tensor]}).status_code == 200
        (entry,) = objects(lines())
    assert entry["size_px"] == 28
    assert entry["outcome"] == "ok"


def test_a_refused_request_says_why_it_was_and_has_no_cost() -> None:
    with served(log_format="json") as (client, lines):
        client.post("/v1/classify", content=b"no image")
        (entry,) = objects(lines())
    assert entry["status"] == 415
    assert entry["outcome"] == "invalid"
    assert "macs_ratio" not in entry


def test_an_exception_is_one_json_line_with_its_trace() -> None:
    with served(log_format="json") as (client, lines):

        @client.app.get("/fail")  # type: ignore[attr-defined, untyped-decorator]
        async def fail() -> None:
            raise RuntimeError("first\nsecond")

        client.get("/fail", headers={"X-Request-Id": "r1"})
        (entry,) = objects(lines(), "skipvit")
    assert "RuntimeError: first\nsecond" in entry["exc_info"]
    assert "r1" in entry["message"]


def test_the_servers_own_lines_have_the_same_format() -> None:
    with served(log_format="json") as (_, lines):
        logging.getLogger("uvicorn.error").info("Started [%d]", 7, extra={"color_message": "\x1b[36m7"})
        (entry,) = objects(lines(), "uvicorn.error")
    assert entry["message"] == "Started [7]"
    assert set(entry) == {"time", "level", "logger", "message"}


def test_text_lines_are_short_and_cant_be_forged() -> None:
    with served() as (client, lines):
        client.get("/v1/models/a%0A2026-01-01 INFO skipvit.access forged", headers={"X-Request-Id": "r1"})
        (line,) = lines()
    assert " INFO skipvit.access r1 GET /v1/models/a%0A2026-01-01%20INFO" in line
    assert line.endswith("ms")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_sample_of_good_requests_is_logged_and_every_error(log_format: str) -> None:
    with served(log_format=log_format, log_sample_ratio=0.0) as (client, lines):
        for _ in range(5):
            client.get("/v1/models")
        assert lines() == []
        client.get("/v1/models/absent")
        client.post("/v1/classify", content=plain(66))
        access = [line for line in lines() if "skipvit.access" in line]
    assert len(access) == 2
    with served(log_format=log_format, log_sample_ratio=0.5) as (client, lines):
        for _ in range(200):
            client.get("/v1/models")
        assert 40 < len(lines()) < 160  # 8 standard deviations
