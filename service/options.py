"""The command line of `python -m service`: one option for each setting, made from the setting itself."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as NotJson

from service.errors import SettingsError
from service.settings import ENV_PREFIX, Settings

ONE_PROCESS = (
    "one process serves with one engine, which uses all its CPUs (SKIPVIT_THREADS). Several workers would hold "
    "the weights several times, split batches, queue and load control between them, and answer /metrics with a random "
    "worker's share. Run more instances behind a load balancer instead; unset --workers and WEB_CONCURRENCY, or set 1"
)
_SUMMARY = "Serve a model bundle over HTTP until SIGTERM, then drain and exit 0."
_EPILOG = "A setting that isn't given here is read from its environment variable."
# Kubernetes tells pods of a Service called skipvit-x, by names and by values (SKIPVIT_X_PORT=tcp://10.0.0.1:80).
_OF_KUBERNETES = re.compile(r"_SERVICE_HOST=|_SERVICE_PORT\w*=|_PORT_\d+_(TCP|UDP)\w*=|=(tcp|udp)://")
_SHORTER = {"default_model": ("--model",)}


def make_parser() -> argparse.ArgumentParser:
    """An option for each setting; what isn't given is None."""
    parser = argparse.ArgumentParser("python -m service", description=_SUMMARY, epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument(
        "--print-config", action="store_true", help="Print all settings as JSON, secrets hidden, and exit."
    )
    parser.add_argument("--workers", help=argparse.SUPPRESS)  # only to say why not
    for name, field in Settings.model_fields.items():
        if name == "api_keys":  # every user of the machine sees a process's arguments
            continue
        option = f"--{name.replace('_', '-')}"
        text = f"{field.description} [{_default(field)}; {ENV_PREFIX}{name.upper()}]"
        parser.add_argument(
            option, *_SHORTER.get(name, ()), dest=name, metavar=_metavar(field), help=text.replace("%", "%%")
        )
    return parser


def check_names(environment: Mapping[str, str]) -> None:
    """Raise SettingsError for a variable named like a setting that is none: it would be passed over in silence."""
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for name, value in environment.items():
        wanted = name.upper()
        if wanted.startswith(ENV_PREFIX) and wanted not in known and not _OF_KUBERNETES.search(f"{wanted}={value}"):
            close = get_close_matches(wanted, known, 1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(f"{name} is no setting: {meant}--help lists them all")


def read_options(given: dict[str, str | None]) -> Settings:
    """The settings from options, and from the environment where there is none; an option is read as its variable is.

    Raises:
        ValidationError: a value that its setting doesn't take.
        SettingsError: a value that should be JSON and isn't.
    """
    source = EnvSettingsSource(Settings)
    source.env_vars = {f"{ENV_PREFIX}{name}".lower(): value for name, value in given.items() if value is not None}
    try:
        return Settings(**source())
    except NotJson as error:
        found = re.search(r'field "(\w+)"', str(error))
        name = ENV_PREFIX + found[1].upper() if found else str(error)
        raise SettingsError(f"{name}: the value isn't JSON") from error


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined or isinstance(default, SecretStr) or default in (None, "", ()):
        return "not set"
    return str(default) if not isinstance(default, dict | bool) else json.dumps(default)


def _metavar(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    kind = kinds[0] if kinds else annotation
    names = {bool: "true|false", int: "N", float: "X"}
    return names.get(kind, "VALUE")
