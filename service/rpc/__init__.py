"""The Open Inference Protocol over gRPC: an optional second way in, to the same application. Needs the extra `grpc`.

An RPC becomes the request of `/v2` that it stands for, in this process, tensors as binary data: what holds for REST
(limits, deadlines, keys, errors, metrics, logs) holds here, because it's the same code. Nothing outside this folder
knows gRPC, and nothing loads it unless a port is set.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp

from service.errors import SettingsError
from service.serving import Serving
from service.settings import Settings


def check_extra(settings: Settings) -> None:
    """SettingsError if a port is set and the extra isn't installed."""
    missing = [name for name in ("grpc", "google.protobuf") if settings.grpc_port is not None and not _is_there(name)]
    if missing:
        raise SettingsError(
            f"SKIPVIT_GRPC_PORT={settings.grpc_port} needs the extra `grpc`, and {missing[0]} isn't installed: "
            "pip install 'skipvit[grpc]', or unset it"
        )


@asynccontextmanager
async def rpc_listener(app: ASGIApp, serving: Serving) -> AsyncIterator[int | None]:
    """Listen on the settings' gRPC port while the block runs; yields the port, None if there is none.

    Raises:
        SettingsError: the port is taken.
    """
    if serving.settings.grpc_port is None:
        yield None
        return
    from service.rpc.server import listening  # here and not above: gRPC is loaded only where it's used

    async with listening(app, serving, serving.settings.grpc_port) as port:
        yield port


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
