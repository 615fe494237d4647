"""What operators and orchestrators ask: is it alive, does it take traffic, how does it fare?"""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.errors import NotReady
from service.schemas import Problem, Status
from service.serving import ServingDep

router = APIRouter(tags=["operations"])
metrics_router = APIRouter(tags=["operations"])  # apart, because it may have a port of its own


@router.get("/healthz", responses={503: {"model": Problem, "description": "No progress although work waits"}})
async def healthz(serving: ServingDep) -> Status:
    """Alive: nothing waits, or the engine has finished something lately. A hung engine is not alive."""
    stalled_s = serving.stalled_s
    if stalled_s > serving.settings.hang_timeout_s:
        raise NotReady(f"the engine has made no progress for {stalled_s:.0f} s although images wait")
    return Status(status="ok")


@router.get("/readyz", responses={503: {"model": Problem, "description": "Starting or draining"}})
async def readyz(serving: ServingDep) -> Status:
    """Ready: the model is loaded and warm, and the process isn't shutting down."""
    if serving.lifecycle.phase != "ready":
        failed = [f"{name!r}: {reason}" for name, reason in serving.repository.awaited.items() if reason]
        why = f"; it waits for a model that can't be loaded: {'; '.join(failed)}" if failed else ""
        raise NotReady(f"the service is {serving.lifecycle.phase}{why}")
    return Status(status="ready")


@metrics_router.get("/metrics", response_class=Response)
async def metrics(serving: ServingDep) -> Response:
    """Prometheus metrics."""
    content, content_type = serving.metrics.expose()
    return Response(content, headers={"Content-Type": content_type})
