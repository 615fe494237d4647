"""`/v1/models`: what is served, and each model's manifest with its calibration table."""

from __future__ import annotations

from fastapi import APIRouter

from service.artifact import Manifest, Precision
from service.schemas import ModelList, ModelSummary, Problem
from service.serving import ServingDep

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(serving: ServingDep) -> ModelList:
    """The served models."""
    return ModelList(models=[_summary(model.manifest, model.precision) for model in serving.models.values()])


@router.get(
    "/{name}",
    responses={
        404: {"model": Problem, "description": "Unknown model"},
        422: {"model": Problem, "description": "Bad parameter"},
    },
)
async def get_model(name: str, serving: ServingDep) -> Manifest:
    """A model's manifest: files, labels, presets, and what each threshold costs and scores."""
    return serving.model(name).manifest


def _summary(manifest: Manifest, precision: Precision) -> ModelSummary:
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        precision=precision,
        sizes_px=list(manifest.sizes_px),
        presets=list(manifest.presets),
        labels=len(manifest.labels),
    )
