"""Schemathesis asks whatever the OpenAPI document allows, and what it doesn't, of a real process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounded
from schemathesis.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.service.process import FAKE, Server, running

Operation = APIOperation[Any, Any, Any, Any]
EXAMPLES = 30  # of each operation, good and bad each
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "0", "SKIPVIT_LOG_SAMPLE_RATIO": "0"}
    with running(FAKE, environment) as server:
        yield server
        code, log = server.stop()
        assert code == 0, log
        assert "Traceback" not in log


def operations() -> list[Operation]:
    app = create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())
    found = schemathesis.openapi.from_dict(app.openapi()).get_all_operations()
    return [each.ok() for each in found]  # type: ignore[union-attr]  # the other kind is a broken document and raises


def questions() -> list[Any]:
    """Each operation with what the document allows; those that take more than a path with what it doesn't as well."""
    both = [(each, mode) for each in operations() for mode in GenerationMode]
    return [
        pytest.param(each, mode, id=f"{each.label} {mode.value}")
        for each, mode in both
        if mode.is_positive or list(each.body) or list(each.query)
    ]


@pytest.mark.parametrize(("operation", "mode"), questions())
def test_every_answer_is_what_the_document_says(server: Server, operation: Operation, mode: GenerationMode) -> None:
    @bounded(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(base_url=server.url)
        assert response.status_code < 500 or response.status_code == 504, response.text  # it may ask for 1 ms
        case.validate_response(response, checks=CHECKS)

    ask()
