from __future__ import annotations

import socket

import pytest
from pydantic import SecretStr

from service.api_keys import make_key
from service.errors import SettingsError
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.images import plain
from tests.service.live import ask, live_server


async def test_metrics_and_probes_have_a_port_of_their_own_without_keys() -> None:
    _, line = make_key("alice")
    async with live_server(FakeEngine(), Settings(metrics_port=0, api_keys=SecretStr(line), drain_delay_s=0)) as live:
        port = live.app.state.metrics_port
        assert port != live.port
        status, text = await ask(port, "GET", "/metrics")
        assert status == 200
        assert b"skipvit_pending_requests 0.0" in text
        assert (await ask(port, "GET", "/healthz"))[0] == 200
        assert (await ask(port, "GET", "/readyz"))[0] == 200
        assert await ask(port, "HEAD", "/readyz") == await ask(port, "HEAD", "/metrics") == (200, b"")
        for path in ("/v1/models", "/v2", "/docs", "/openapi.json", "/"):
            assert (await ask(port, "GET", path))[0] == 404, path


async def test_metrics_leave_the_main_port() -> None:
    async with live_server(FakeEngine(), Settings(metrics_port=0, drain_delay_s=0)) as live:
        assert (await ask(live.port, "GET", "/metrics"))[0] == 404
        assert (await ask(live.port, "POST", "/v1/classify", plain(1)))[0] == 200
        _, text = await ask(live.app.state.metrics_port, "GET", "/metrics")
        assert b'skipvit_requests_total{model="fake",outcome="ok"} 1.0' in text
        live.app.state.lifecycle.begin_drain()
        assert (await ask(live.app.state.metrics_port, "GET", "/readyz"))[0] == 503


async def test_without_the_setting_there_is_one_port() -> None:
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        assert live.app.state.metrics_port is None
        assert (await ask(live.port, "GET", "/metrics"))[0] == 200


async def test_a_taken_port_is_named() -> None:
    from service.app import create_app
    from tests.fakes import fake_bundle

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = create_app(Settings(metrics_port=port), bundle=fake_bundle(), engine=FakeEngine())
        with pytest.raises(SettingsError, match=f"SKIPVIT_METRICS_PORT={port}"):
            async with app.router.lifespan_context(app):
                pass
