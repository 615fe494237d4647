"""`POST /v1/classify`: an image or several in, labels and what they cost out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from service import schemas
from service.artifact import Manifest
from service.batch import Answer
from service.body import IMAGE_TYPES, MULTIPART, read_images
from service.budget import choose
from service.error_handlers import MEDIA_TYPE
from service.errors import DeadlinePassed
from service.exchange import CLIENT_LEFT, Measured, ask, count_request, find_model, record, server_timing
from service.explain import overlay_uri
from service.results import make_receipt, make_result
from service.serving import Serving, ServingDep

router = APIRouter(prefix="/v1", tags=["classify"])

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "required": True,
    "description": "One image as it is, or a form with one or more parts named `image`.",
    "content": {
        **dict.fromkeys(IMAGE_TYPES, _BINARY),
        MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}

_REQUEST_ID: dict[str, Any] = {  # handled by the outermost layer for every route; shown here, where it's looked for
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "Echoed in the answer and written to the log; made if absent or unfit.",
    "schema": {"type": "string", "maxLength": 128},
}


def _problems() -> dict[int | str, dict[str, Any]]:
    titles = {
        400: "Malformed body",
        404: "Unknown model",
        413: "Too many bytes, pixels or images",
        415: "Not an image type that is taken",
        422: "Bad parameter, or an image that can't be decoded",
        429: "Queue full; see Retry-After",
        500: "Inference failed",
        503: "Starting or draining",
        504: "Deadline passed",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": title,
            "content": {
                MEDIA_TYPE: {
                    "schema": schema,
                    "example": {
                        "type": "urn:skipvit:problem:example",
                        "title": title,
                        "status": status,
                        "detail": "what was wrong, by name",
                        "request_id": "4f0c2a",
                    },
                }
            },
        }
        for status, title in titles.items()
    }


@router.post(
    "/classify",
    response_model=schemas.ClassifyResponse,
    dependencies=[Depends(count_request)],
    responses=_problems(),
    openapi_extra={"requestBody": _BODY, "parameters": [_REQUEST_ID]},
)
async def classify(
    request: Request,
    serving: ServingDep,
    query: Annotated[schemas.ClassifyQuery, Query()],
    x_request_timeout_ms: Annotated[
        int | None, Header(ge=1, le=600_000, description="Deadline from the request's start; 504 when it passes.")
    ] = None,
) -> Response:
    """Classify one image, or each of several, computing only the patches it needs."""
    model = find_model(request, serving, query.model)
    manifest = model.manifest
    choice = choose(
        manifest,
        threshold=query.threshold,
        compute=query.compute,
        preset=query.preset,
        size_px=query.size,
        default_preset=serving.settings.default_preset,
    )
    timeout_s = serving.settings.default_timeout_s if x_request_timeout_ms is None else x_request_timeout_ms / 1e3
    deadline = request.state.started_s + timeout_s
    model.batcher.check_room(1)  # a full queue refuses before it reads and decodes
    try:
        images, decode_s = await _receive(request, serving, manifest, choice.size_px, deadline)
        thresholds = [choice.threshold] * len(images)
        answers = await ask(request, model, images, thresholds, deadline)
    except ClientDisconnect:
        request.state.outcome = "cancelled"
        return Response(status_code=CLIENT_LEFT)
    receipts = [make_receipt(manifest, choice.size_px, answer.kept) for answer in answers]
    overlays = await _draw(serving, images, answers) if query.explain == "overlay" else None
    results = [
        make_result(
            manifest,
            choice,
            receipt,
            answer.logits,
            top_k=query.top_k,
            mask=answer.kept if query.explain == "mask" else None,
            overlay=overlays[index] if overlays else None,
        )
        for index, (receipt, answer) in enumerate(zip(receipts, answers, strict=True))
    ]
    measured = Measured(decode_s, answers, serving.now() - request.state.started_s)
    record(serving, model, receipts, thresholds, measured)
    request.state.outcome = "ok"
    return _respond(manifest, results, measured)


async def _receive(
    request: Request, serving: Serving, manifest: Manifest, size_px: int, deadline: float
) -> tuple[list[NDArray[np.uint8]], float]:
    """Read the body and decode its images; also how long decoding took."""
    try:
        async with asyncio.timeout_at(deadline):  # the loop's clock is `time.monotonic`, as the deadline's is
            encoded = await read_images(request, serving.body_limits)
            started_s = serving.now()
            images = await serving.decoders.decode(encoded, size_px, manifest.preprocessing.interpolation)
            return images, serving.now() - started_s
    except TimeoutError:
        raise DeadlinePassed("the deadline passed before the images were received and decoded") from None


async def _draw(serving: Serving, images: Sequence[NDArray[np.uint8]], answers: Sequence[Answer]) -> list[str]:
    pairs = zip(images, answers, strict=True)
    drawings = [serving.decoders.run(partial(overlay_uri, image, answer.kept)) for image, answer in pairs]
    return list(await asyncio.gather(*drawings))


def _respond(manifest: Manifest, results: list[schemas.Result], measured: Measured) -> Response:
    timing = measured.timing_ms()
    answer = schemas.ClassifyResponse(
        model=schemas.ModelId(name=manifest.name, version=manifest.version),
        results=results,
        timing_ms=timing,
        batch_size=max(answer.batch_size for answer in measured.answers),
    )
    return Response(
        answer.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers={"Server-Timing": server_timing(timing)},
    )
