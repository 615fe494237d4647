from __future__ import annotations

import json
import re

import pytest

from service.__main__ import main
from service.options import check_names, make_parser, read_options
from service.settings import Settings


def parsed(*arguments: str) -> Settings:
    given = vars(make_parser().parse_args(list(arguments)))
    return read_options({name: value for name, value in given.items() if name not in ("print_config", "workers")})


def test_every_setting_is_an_option_whose_help_says_what_it_trades_off() -> None:
    text = re.sub(r"\s+", " ", make_parser().format_help())
    for name, field in Settings.model_fields.items():
        if name == "api_keys":
            assert "--api-keys " not in text  # a process's arguments are seen by every user of the machine
            continue
        assert f"--{name.replace('_', '-')} " in text
        assert re.sub(r"\s+", " ", field.description or "absent").replace("-", "") in text.replace("- ", "").replace(
            "-", ""
        )
        assert f"SKIPVIT_{name.upper()}]" in text.replace("- ", "")


def test_an_option_is_read_as_its_variable_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPVIT_PORT", "9000")
    monkeypatch.setenv("SKIPVIT_MAX_BATCH_SIZE", "7")
    settings = parsed("--port", "9001", "--cors-origins", "https://a.example,https://b.example", "--tracing", "true")
    assert settings.port == 9001
    assert settings.max_batch_size == 7
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.tracing is True
    assert parsed("--model", "other").default_model == "other"


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_value_that_should_be_json_is_named_in_one_line(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parsed("--min-compute", '{"full": 0.75}').min_compute == {"full": 0.75}
    if how == "variable":
        monkeypatch.setenv("SKIPVIT_MIN_COMPUTE", "half")
    assert main(["--min-compute", "half"] if how == "option" else []) == 2
    assert capsys.readouterr().err == "skipvit: SKIPVIT_MIN_COMPUTE: the value isn't JSON\n"


def test_the_printed_configuration_has_every_setting_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPVIT_API_KEYS", "alice:" + "ab" * 32)
    assert main(["--print-config"]) == 0
    printed = capsys.readouterr().out
    assert set(json.loads(printed)) == set(Settings.model_fields)
    assert "abab" not in printed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SKIPVIT_TREADS", "SKIPVIT_TREADS is no setting: did you mean SKIPVIT_THREADS? --help lists them all"),
        ("SKIPVIT_QQQQQQQQQQQQQ", "SKIPVIT_QQQQQQQQQQQQQ is no setting: --help lists them all"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(
    name: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert main(["--print-config"]) == 2
    assert capsys.readouterr().err == f"skipvit: {said}\n"


def test_what_kubernetes_tells_of_a_service_is_no_misspelt_setting() -> None:
    names = ("SKIPVIT_SERVICE_HOST", "SKIPVIT_SERVICE_PORT_HTTP", "SKIPVIT_CANARY_PORT_8000_TCP_ADDR", "PATH")
    check_names(dict.fromkeys(names, "10.0.0.1") | {"SKIPVIT_CANARY_PORT": "tcp://10.0.0.1:8000"})


def test_an_option_has_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--api-keys", "alice:secret"])
    assert "unrecognized arguments: --api-keys" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["option", "variable"])
def test_several_workers_are_refused_with_the_reason(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert main(["--workers", "4"] if how == "option" else []) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "WEB_CONCURRENCY" in line
    assert "load balancer" in line


def test_keys_that_cant_be_read_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPVIT_API_KEYS", "alice:secret")
    assert main([]) == 2
    line = capsys.readouterr().err
    assert "SKIPVIT_API_KEYS" in line.splitlines()[-1]
    assert "secret" not in line
