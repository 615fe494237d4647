"""The ports that the settings name, tried before a model's seconds of loading. It knows no server."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from service.errors import SettingsError
from service.settings import ENV_PREFIX, Settings


def check_ports(settings: Settings) -> None:
    """Bind each port and let it go again; SettingsError, naming the setting, for one that can't be had."""
    ports = {"PORT": settings.port, "METRICS_PORT": settings.metrics_port, "GRPC_PORT": settings.grpc_port}
    with ExitStack() as bound:
        for name, port in ports.items():
            if port is not None:
                bound.enter_context(bind(settings.host, port, name))


def bind(host: str, port: int, name: str) -> socket.socket:
    """A socket that listens; `name` is the setting's. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(f"{ENV_PREFIX}{name}={port} on {ENV_PREFIX}HOST={host}: {error}") from None
