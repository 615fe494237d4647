"""`POST /v1/explain`: an image in, a picture out of which patches each layer computed; for notebooks and reports.

It is classified like any other, in the same batches, and counts as one classification request; the picture is drawn
on the decoders' threads, and its size depends on the model alone.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.requests import ClientDisconnect

from service import schemas
from service.classification import classify_images, record_answered
from service.exchange import CLIENT_LEFT, count_request, find_model, server_timing
from service.explain import draw
from service.routes.classify import BODY, REQUEST_ID, problems
from service.routes.classifying import ClassifyingRoute
from service.serving import ServingDep

router = APIRouter(prefix="/v1", tags=["classify"], route_class=ClassifyingRoute)

_PICTURE: dict[str, Any] = {
    "description": "The picture.",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
}


@router.post(
    "/explain",
    response_class=Response,
    dependencies=[Depends(count_request)],
    responses={**problems(), 200: _PICTURE},
    openapi_extra={"requestBody": BODY, "parameters": [REQUEST_ID]},
)
async def explain(
    request: Request,
    serving: ServingDep,
    query: Annotated[schemas.ExplainQuery, Query()],
    x_request_timeout_ms: Annotated[
        int | None, Header(ge=1, le=600_000, description="Deadline from the request's start; 504 when it passes.")
    ] = None,
) -> Response:
    """Draw which patches of one image each layer computed, as a PNG."""
    model = find_model(request, serving, query.model)
    try:
        answered = await classify_images(request, serving, model, query, x_request_timeout_ms, max_images=1, draws=True)
    except ClientDisconnect:
        request.state.outcome = "cancelled"
        return Response(status_code=CLIENT_LEFT)
    image, kept = answered.images[0], answered.computed[0].answer.kept
    picture = await serving.decoders.run(partial(draw, query.style, image, kept, model.manifest.gated_layers))
    record_answered(request, serving, model, answered)
    headers = {"Server-Timing": server_timing(answered.measured.timing_ms())}
    return Response(picture, media_type="image/png", headers=headers)
