from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import Settings, explain_settings_error


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SKIPVIT_{name.upper()}", raising=False)


def test_environment_variables_override_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPVIT_MAX_BATCH_SIZE", "7")
    assert Settings().max_batch_size == 7


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPVIT_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SKIPVIT_PORT", "http"),
        ("SKIPVIT_PORT", "70000"),
        ("SKIPVIT_THREADS", "-1"),
        ("SKIPVIT_MAX_BATCH_SIZE", "0"),
        ("SKIPVIT_DEFAULT_PRESET", "fast"),
        ("SKIPVIT_PRECISION", "int4"),
        ("SKIPVIT_MAX_IMAGE_PIXELS", "100000000"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    line = explain_settings_error(caught.value)
    assert line.startswith(f"{name}={value!r}: ")
    assert "\n" not in line


def test_kubernetes_service_link_is_not_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPVIT_PORT", "tcp://10.0.0.7:8000")
    assert Settings().port == 8000
    monkeypatch.setenv("SKIPVIT_GRPC_PORT", "tcp://10.0.0.7:8001")
    assert Settings().grpc_port is None


def test_every_field_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_an_origin_has_a_scheme() -> None:
    assert Settings(cors_origins="*").cors_origins == ("*",)
    assert Settings(cors_origins="app://-, https://a.example").cors_origins == ("app://-", "https://a.example")
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins="https://a.example, b.example")
