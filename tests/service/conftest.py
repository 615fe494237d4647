"""An application with a fake engine, in process; coroutines run in the loop that serves, uvloop's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle

# What a client may take from a connection depends on the loop, and not every system has uvloop.
_IN_EVERY_LOOP = ("test_connection.py", "test_live.py")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    serving: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    return serving | ({"asyncio": asyncio.new_event_loop} if item.path.name in _IN_EVERY_LOOP else {})


@pytest.fixture(autouse=True)
def _the_log_as_it_was() -> Iterator[None]:
    """`main` sets up the log of its process, which here is everybody's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(poison=frozenset({66}))


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    settings = Settings(
        max_image_bytes=100_000,
        max_request_bytes=300_000,
        max_images_per_request=4,
        guard_ratio=0.0,  # a random answer computed again would be one batch too many
    )
    with TestClient(create_app(settings, bundle=fake_bundle(), engine=engine)) as client:
        yield client
