"""`/v2`: the Open Inference Protocol over REST, as KServe and Triton speak it, on the same queue as `/v1/classify`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.requests import ClientDisconnect

from service.account import make_account
from service.artifact import Manifest
from service.batch import Answer
from service.body import BodyLimits, read_body
from service.budget import Choice, choose
from service.classification import answer_images, record_answered
from service.errors import DeadlinePassed, NotReady, TooLarge
from service.exchange import (
    CLIENT_LEFT,
    Measured,
    ask,
    count_request,
    find_model,
    record,
    server_timing,
)
from service.oip import EXTENSIONS, OUTPUTS, Asked, AskedEncoded, answer_head, describe, max_json_bytes, understand
from service.oip_schemas import (
    INFERENCE_REQUEST,
    InferenceResponse,
    Live,
    ModelMetadata,
    ModelReady,
    ProtocolError,
    Ready,
    ServerMetadata,
)
from service.openapi import release
from service.results import Receipt, make_receipt
from service.routes.ops import healthz, readyz
from service.served_model import ServedModel
from service.serving import Serving, ServingDep
from service.tensors import JSON_LENGTH, Tensor, split_body, write_response

PROTOCOL_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ProtocolError, "description": "What was wrong with the request, by name"},
    "5XX": {"model": ProtocolError, "description": "Starting or draining, the deadline passed, inference failed"},
}
router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=PROTOCOL_RESPONSES)


async def named_model(name: str, request: Request, serving: ServingDep) -> ServedModel:
    """The model that the path names; UnknownModel if it isn't served."""
    return find_model(request, serving, name)


async def named_version(name: str, version: str, request: Request, serving: ServingDep) -> ServedModel:
    """The model and version that the path names; UnknownModel if they aren't served."""
    return find_model(request, serving, name, version)


ModelDep = Annotated[ServedModel, Depends(named_model)]
VersionDep = Annotated[ServedModel, Depends(named_version)]
JsonLength = Annotated[
    str | None, Header(alias=JSON_LENGTH, description="Bytes of JSON before binary data; without it all is JSON.")
]


@router.get("")
async def server_metadata() -> ServerMetadata:
    """The server's name, version and extensions of the protocol."""
    return ServerMetadata(name="skipvit", version=release(), extensions=EXTENSIONS)


@router.get("/health/live")
async def server_live(serving: ServingDep) -> Live:
    """What `/healthz` says."""
    await healthz(serving)
    return Live(live=True)


@router.get("/health/ready")
async def server_ready(serving: ServingDep) -> Ready:
    """What `/readyz` says."""
    await readyz(serving)
    return Ready(ready=True)


@router.get("/models/{name}", response_model_exclude_none=True)
async def model_metadata(model: ModelDep, serving: ServingDep) -> ModelMetadata:
    """The model's versions, inputs and outputs."""
    return describe(model.manifest, serving.settings.engine)


@router.get("/models/{name}/versions/{version}", response_model_exclude_none=True)
async def version_metadata(model: VersionDep, serving: ServingDep) -> ModelMetadata:
    """The same, for a version by name."""
    return describe(model.manifest, serving.settings.engine)


@router.get("/models/{name}/ready")
async def model_ready(model: ModelDep, serving: ServingDep) -> ModelReady:
    """Whether the model takes traffic, though others may still be loading."""
    if serving.lifecycle.phase == "draining":
        raise NotReady("the service is draining")
    return ModelReady(name=model.name, ready=True)


@router.get("/models/{name}/versions/{version}/ready")
async def version_ready(model: VersionDep, serving: ServingDep) -> ModelReady:
    """The same, for a version by name."""
    return await model_ready(model, serving)


_inference = partial(
    router.post,
    response_model=InferenceResponse,
    dependencies=[Depends(count_request)],
    openapi_extra={"requestBody": INFERENCE_REQUEST},
    responses={200: {"content": {"application/octet-stream": {}}, "description": "JSON, then binary outputs if any"}},
)


@_inference("/models/{name}/infer")
async def infer(
    model: ModelDep,
    request: Request,
    serving: ServingDep,
    json_bytes: JsonLength = None,
) -> Response:
    """Logits and kept patches of each image, computing only the patches it needs."""
    deadline = request.state.started_s + serving.settings.default_timeout_s
    model.batcher.check_room(1)  # a full queue refuses before it reads and parses
    try:
        received = await _receive(request, serving, model.manifest, json_bytes, deadline)
        asked = received.asked
        if asked.timeout_s is not None:
            deadline = request.state.started_s + asked.timeout_s
        if isinstance(asked, AskedEncoded):
            answered = await _answer_encoded(request, serving, model, asked, deadline)
        else:
            answered = await _answer_tensors(request, serving, model, asked, received.decode_s, deadline)
    except ClientDisconnect:
        request.state.outcome = "cancelled"
        return Response(status_code=CLIENT_LEFT)
    return _respond(model.manifest, received, answered)


@_inference("/models/{name}/versions/{version}/infer")
async def infer_version(
    model: VersionDep,
    request: Request,
    serving: ServingDep,
    json_bytes: JsonLength = None,
) -> Response:
    """The same, for a version by name."""
    return await infer(model, request, serving, json_bytes)


class _Received(NamedTuple):
    id: str | None
    asked: Asked | AskedEncoded
    decode_s: float


class _Answered(NamedTuple):
    """One of each for each image."""

    answers: Sequence[Answer]
    receipts: Sequence[Receipt]
    sizes_px: Sequence[int]
    measured: Measured
    degraded: bool
    cached: bool = False  # every answer of them


async def _answer_tensors(
    request: Request, serving: Serving, model: ServedModel, asked: Asked, decode_s: float, deadline: float
) -> _Answered:
    thresholds, degraded = _plan(serving, model, asked, deadline)
    answers = await ask(request, model, list(asked.images), thresholds, deadline)
    measured = Measured(decode_s, answers, serving.now() - request.state.started_s)
    choices = [Choice(asked.size_px, threshold) for threshold in thresholds]
    receipts = [make_receipt(model.manifest, choice, one.kept) for choice, one in zip(choices, answers, strict=True)]
    record(serving, model, receipts, thresholds, measured, degraded=degraded)
    request.state.account = make_account(receipts, thresholds, measured, size_px=asked.size_px, degraded=degraded)
    request.state.outcome = "ok"
    return _Answered(answers, receipts, [asked.size_px] * len(answers), measured, degraded)


async def _answer_encoded(
    request: Request, serving: Serving, model: ServedModel, asked: AskedEncoded, deadline: float
) -> _Answered:
    async def read() -> list[bytes]:
        return asked.encoded

    answered = await answer_images(request, serving, model, asked.spend, deadline, read)
    record_answered(request, serving, model, answered)
    return _Answered(
        [one.answer for one in answered.computed],
        answered.receipts,
        [plan.choice.size_px for plan in answered.plans],
        answered.measured,
        any(plan.degraded for plan in answered.plans),
        all(one.cached for one in answered.computed),
    )


def _plan(serving: Serving, model: ServedModel, asked: Asked, deadline: float) -> tuple[list[float], bool]:
    """The threshold that each image runs at, and whether any is higher than what was asked."""
    preset = serving.settings.default_preset
    wanted = asked.thresholds
    if wanted is None:
        choice = choose(model.manifest, size_px=asked.size_px, default_preset=preset)
        wanted = [choice.threshold] * len(asked.images)
    macs = sum(model.cost.macs(asked.size_px, threshold) for threshold in wanted)
    plans = {
        threshold: model.planner.plan(
            Choice(asked.size_px, threshold),
            bound=preset,
            by_load=asked.thresholds is None if asked.degrade is None else asked.degrade,
            by_deadline=asked.degrade is True,
            deadline=deadline,
            images=ceil(macs / model.cost.macs(asked.size_px, threshold)),  # that are as much work as these
            size_px=asked.size_px,
        )
        for threshold in set(wanted)
    }
    return [plans[threshold].choice.threshold for threshold in wanted], any(plan.degraded for plan in plans.values())


async def _receive(
    request: Request, serving: Serving, manifest: Manifest, json_bytes: str | None, deadline: float
) -> _Received:
    """Read the body and its tensors; also how long the latter took."""
    limits = serving.body_limits
    most = max_json_bytes(manifest, limits.max_images)

    def parse(body: bytes) -> tuple[str | None, Asked | AskedEncoded]:
        document, binary = split_body(body, json_bytes, max_json_bytes=most)
        return document.id, understand(manifest, document, binary, max_images=limits.max_images)

    try:
        async with asyncio.timeout_at(deadline):  # the loop's clock is `time.monotonic`, as the deadline's is
            body = await _read(request, limits, None if json_bytes else most)
            started_s = serving.now()
            request_id, asked = await serving.decoders.run(partial(parse, body))
            return _Received(request_id, asked, serving.now() - started_s)
    except TimeoutError:
        raise DeadlinePassed("the deadline passed before the tensors were received and parsed") from None


async def _read(request: Request, limits: BodyLimits, max_json_bytes: int | None) -> bytes:
    """The body; `max_json_bytes`: of one that is JSON and nothing else."""
    if max_json_bytes is None or max_json_bytes >= limits.max_request_bytes:
        return await read_body(request, limits.max_request_bytes, limits.budget)
    try:
        return await read_body(request, max_json_bytes, limits.budget)
    except TooLarge as error:
        raise TooLarge(f"{error} (for JSON; send tensors as binary data)") from None


def _respond(manifest: Manifest, received: _Received, answered: _Answered) -> Response:
    columns: dict[str, list[Any]] = {
        "logits": [one.logits for one in answered.answers],  # (classes,) each
        "kept": [one.kept for one in answered.answers],  # (L, P) each
        "macs_ratio": [receipt.macs_ratio for receipt in answered.receipts],
        "size_px": list(answered.sizes_px),
    }
    outputs = [
        (Tensor(name, OUTPUTS[name], np.stack(columns[name])), as_binary) for name, as_binary in received.asked.outputs
    ]
    head = answer_head(manifest, received.id, degraded=answered.degraded, cached=answered.cached)
    body, json_bytes = write_response(head, outputs)
    headers = {"Server-Timing": server_timing(answered.measured.timing_ms())}
    if json_bytes is None:
        return Response(body, media_type="application/json", headers=headers)
    headers[JSON_LENGTH] = str(json_bytes)
    return Response(body, media_type="application/octet-stream", headers=headers)
