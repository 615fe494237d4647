"""The gRPC server: which RPC stands for which request of `/v2`, and which status for which code."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from starlette.types import ASGIApp

from service.errors import SettingsError
from service.oip import TRITON_TYPES
from service.rpc.gateway import Gateway, Reply
from service.rpc.inference import read_response, write_head, write_tensors
from service.rpc.messages import HEALTH, INFERENCE, MESSAGES
from service.serving import Serving
from service.tensors import JSON_LENGTH

logger = logging.getLogger("skipvit")

SERVICE = f"{INFERENCE}.GRPCInferenceService"
_MESSAGE_BYTES_BESIDE_TENSORS = 65536
_LATE_S = 0.01  # gRPC ends an RPC at its deadline by a clock that isn't quite ours
_SERVING, _NOT_SERVING = 1, 2  # of grpc.health.v1
_PROBES = {"": "/v2/health/ready", SERVICE: "/v2/health/ready", "liveness": "/v2/health/live"}

Context = Any  # grpc.aio.ServicerContext; the library has no types
Method = Callable[[Any, Context], Awaitable[Any]]

CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(status: int) -> grpc.StatusCode:
    """The code for an HTTP status that isn't 200."""
    return CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL)


@asynccontextmanager
async def listening(app: ASGIApp, serving: Serving, port: int) -> AsyncIterator[int]:
    """Serve on `port` while the block runs; then, or when the lifecycle says so, take no more and let RPCs finish."""
    settings = serving.settings
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", settings.max_request_bytes + _MESSAGE_BYTES_BESIDE_TENSORS),
            ("grpc.so_reuseport", 0),  # else a second process on the port would take half of the connections
        )
    )
    servicer = Servicer(Gateway(app, {"serving": serving}), serving)
    server.add_generic_rpc_handlers(
        (_handlers(SERVICE, servicer.methods), _handlers(f"{HEALTH}.Health", servicer.health))
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise SettingsError(f"SKIPVIT_GRPC_PORT={port}: {error}") from None
    await server.start()
    logger.info("Open Inference Protocol over gRPC on %s:%d", host, bound)
    stopping: list[asyncio.Task[None]] = []
    stop = partial(server.stop, settings.drain_timeout_s)
    serving.lifecycle.stop_accepting = lambda: stopping.append(asyncio.create_task(stop()))
    try:
        yield bound
    finally:
        await asyncio.gather(
            server.stop(max(0.0, settings.drain_timeout_s - serving.lifecycle.draining_s())), *stopping
        )


class Servicer:
    """The RPCs; each asks the application one thing."""

    def __init__(self, gateway: Gateway, serving: Serving) -> None:
        self._gateway = gateway
        self._serving = serving
        self.methods: dict[str, Method] = {
            "ServerLive": self._probe("/v2/health/live", "ServerLiveResponse", "live"),
            "ServerReady": self._probe("/v2/health/ready", "ServerReadyResponse", "ready"),
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelInfer": self.model_infer,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": partial(self._operate, "load"),
            "RepositoryModelUnload": partial(self._operate, "unload"),
        }
        self.health: dict[str, Method] = {"Check": self.check}

    async def model_ready(self, request: Any, context: Context) -> Any:
        """False for a model that isn't served, too."""
        path = await _model_path(context, request.name, request.version)
        reply = await self._gateway.ask("GET", f"{path}/ready", context.invocation_metadata())
        if reply.status not in (200, 404, 503):
            await _abort(context, reply)
        return MESSAGES["ModelReadyResponse"](ready=reply.status == 200)

    async def server_metadata(self, request: Any, context: Context) -> Any:
        """As REST."""
        document = await self._get(context, "GET", "/v2")
        return ParseDict(document, MESSAGES["ServerMetadataResponse"](), ignore_unknown_fields=True)

    async def model_metadata(self, request: Any, context: Context) -> Any:
        """As REST, but for which inputs are optional, which the message can't say."""
        document = await self._get(context, "GET", await _model_path(context, request.name, request.version))
        return ParseDict(document, MESSAGES["ModelMetadataResponse"](), ignore_unknown_fields=True)

    async def model_config(self, request: Any, context: Context) -> Any:
        """As REST."""
        path = await _model_path(context, request.name, request.version)
        document = await self._get(context, "GET", f"{path}/config")
        for tensor in (*document["input"], *document["output"]):
            tensor["data_type"] = TRITON_TYPES[tensor["data_type"]]
        return ParseDict({"config": document}, MESSAGES["ModelConfigResponse"]())

    async def model_infer(self, request: Any, context: Context) -> Any:
        """Outputs are raw, whatever the inputs were."""
        path = await _model_path(context, request.model_name, request.model_version)
        head = write_head(request, context.time_remaining())

        async def body() -> bytes:
            return head + await self._serving.decoders.run(partial(write_tensors, request))

        reply = await self._gateway.ask(
            "POST",
            f"{path}/infer",
            context.invocation_metadata(),
            headers={JSON_LENGTH: str(len(head))},
            body=body,
            was_late=lambda: _is_late(context.time_remaining()),
        )
        if reply.status != 200:
            await _abort(context, reply)
        context.set_trailing_metadata(_trailing(reply))
        return read_response(reply)

    async def repository_index(self, request: Any, context: Context) -> Any:
        """As REST."""
        body = json.dumps({"ready": request.ready}).encode()
        models = await self._get(context, "POST", "/v2/repository/index", body)
        return ParseDict({"models": models}, MESSAGES["RepositoryIndexResponse"]())

    async def _operate(self, action: str, request: Any, context: Context) -> Any:
        name = request.model_name or request.repository_name  # where Triton has the repository, KServe has the model
        parameters = dict.fromkeys(request.parameters, True)  # refused by name, if at all
        path = f"/v2/repository/models/{await _part(context, name)}/{action}"
        await self._get(context, "POST", path, json.dumps({"parameters": parameters}).encode())
        done = {"load": "isLoaded", "unload": "isUnloaded"}[action]
        return MESSAGES[f"RepositoryModel{action.title()}Response"](model_name=name, **{done: True})

    async def check(self, request: Any, context: Context) -> Any:
        """`grpc.health.v1`: readiness for the empty name and the protocol's service, and `liveness`."""
        path = _PROBES.get(request.service)
        if path is None:
            known = ", ".join(repr(name) for name in _PROBES)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r}; there are {known}")
        reply = await self._gateway.ask("GET", str(path), context.invocation_metadata())
        return MESSAGES["HealthCheckResponse"](status=_SERVING if reply.status == 200 else _NOT_SERVING)

    def _probe(self, path: str, response: str, field: str) -> Method:
        async def probe(request: Any, context: Context) -> Any:
            reply = await self._gateway.ask("GET", path, context.invocation_metadata())
            return MESSAGES[response](**{field: reply.status == 200})

        return probe

    async def _get(self, context: Context, method: str, path: str, body: bytes = b"") -> Any:
        async def whole() -> bytes:
            return body

        reply = await self._gateway.ask(method, path, context.invocation_metadata(), body=whole)
        if reply.status != 200:
            await _abort(context, reply)
        return json.loads(reply.body)


def _is_late(left_s: float | None) -> bool:
    return left_s is not None and left_s < _LATE_S


async def _model_path(context: Context, name: str, version: str) -> str:
    path = f"/v2/models/{await _part(context, name)}"
    return f"{path}/versions/{await _part(context, version)}" if version else path


async def _part(context: Context, name: str) -> str:
    """`name` if it is one part of a path."""
    if not name or "/" in name:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {name[:100]!r} is served here")
    return name


async def _abort(context: Context, reply: Reply) -> None:
    """End the RPC as REST would have ended the request."""
    try:
        detail = json.loads(reply.body)["error"]
    except (ValueError, LookupError, TypeError):  # not one of the protocol's errors
        detail = f"status {reply.status}"
    await context.abort(code_of(reply.status), detail, _trailing(reply))


def _trailing(reply: Reply) -> tuple[tuple[str, str], ...]:
    """Headers that say something here, too; and when to come back in the form that gRPC's own retries obey."""
    names = ("x-request-id", "server-timing", "retry-after")
    metadata = [(name, reply.headers[name]) for name in names if name in reply.headers]
    if "retry-after" in reply.headers:
        metadata.append(("grpc-retry-pushback-ms", str(int(reply.headers["retry-after"]) * 1000)))
    return tuple(metadata)


def _handlers(service: str, methods: dict[str, Method]) -> Any:
    """What gRPC calls for each method; a method's messages are named after it."""
    prefix = {"Check": "HealthCheck"}
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=MESSAGES[f"{prefix.get(name, name)}Request"].FromString,
                response_serializer=MESSAGES[f"{prefix.get(name, name)}Response"].SerializeToString,
            )
            for name, method in methods.items()
        },
    )
