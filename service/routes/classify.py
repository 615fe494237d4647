"""`POST /v1/classify`: an image or several in, labels and what they cost out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from service import schemas
from service.artifact import Manifest
from service.body import IMAGE_TYPES, MULTIPART
from service.cache import Computed
from service.classification import Answered, classify_images, record_answered
from service.error_handlers import MEDIA_TYPE
from service.exchange import CLIENT_LEFT, Measured, count_request, find_model, server_timing
from service.explain import overlay_uri
from service.results import make_result, top_predictions
from service.routes.classifying import ClassifyingRoute
from service.serving import Serving, ServingDep

router = APIRouter(prefix="/v1", tags=["classify"], route_class=ClassifyingRoute)

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {
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

REQUEST_ID: dict[str, Any] = {  # handled by the outermost layer for every route; shown here, where it's looked for
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "Echoed in the answer and written to the log; made if absent or unfit.",
    "schema": {"type": "string", "maxLength": 128},
}


def problems() -> dict[int | str, dict[str, Any]]:
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
    responses=problems(),
    openapi_extra={"requestBody": BODY, "parameters": [REQUEST_ID]},
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
    try:
        answered = await classify_images(
            request, serving, model, query, x_request_timeout_ms, draws=query.explain == "overlay"
        )
    except ClientDisconnect:
        request.state.outcome = "cancelled"
        return Response(status_code=CLIENT_LEFT)
    overlays = await _draw(serving, answered) if query.explain == "overlay" else None
    results = [
        make_result(
            model.manifest,
            plan,
            receipt,
            computed.answer.logits,
            top_k=query.top_k,
            mask=computed.answer.kept if query.explain == "mask" else None,
            overlay=overlays[index] if overlays else None,
            cached=computed.cached,
            first_look=_first_look(model.manifest, first),
        )
        for index, (plan, computed, first, receipt) in enumerate(
            zip(answered.plans, answered.computed, answered.before, answered.receipts, strict=True)
        )
    ]
    record_answered(request, serving, model, answered)
    return _respond(model.manifest, results, answered.measured)


def _first_look(manifest: Manifest, first: Computed | None) -> schemas.FirstLook | None:
    if first is None:
        return None
    (best,) = top_predictions(first.answer.logits, manifest.labels, 1)
    return {"prediction": best, "threshold": first.choice.threshold, "size_px": first.choice.size_px}


async def _draw(serving: Serving, answered: Answered) -> list[str]:
    pairs = zip(answered.images, answered.computed, strict=True)
    drawings = [serving.decoders.run(partial(overlay_uri, image, one.answer.kept)) for image, one in pairs]
    return list(await asyncio.gather(*drawings))


def _respond(manifest: Manifest, results: list[schemas.Result], measured: Measured) -> Response:
    timing = measured.timing_ms()
    answer: schemas.ClassifyResponse = {
        "model": {"name": manifest.name, "version": manifest.version},
        "results": results,
        "timing_ms": timing,
        "batch_size": max(answer.batch_size for answer in measured.answers),
    }
    return Response(to_json(answer), media_type="application/json", headers={"Server-Timing": server_timing(timing)})
