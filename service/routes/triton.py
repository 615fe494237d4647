"""What Triton's own tools ask for beside the protocol: a model's configuration (`perf_analyzer` needs it).

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_configuration.md
Its statistics extension is not offered: `perf_analyzer` wants versions in it that are numbers, and ours are not.
"""

from __future__ import annotations

from fastapi import APIRouter

from service.oip import configure
from service.oip_schemas import ModelConfiguration
from service.routes.v2 import PROTOCOL_RESPONSES, ModelDep, VersionDep
from service.serving import ServingDep

router = APIRouter(prefix="/v2/models", tags=["open inference protocol"], responses=PROTOCOL_RESPONSES)


@router.get("/{name}/config", response_model_exclude_none=True)
async def configuration(model: ModelDep, serving: ServingDep) -> ModelConfiguration:
    """The model's inputs and outputs as Triton's configuration has them."""
    return configure(model.manifest, serving.settings.engine)


@router.get("/{name}/versions/{version}/config", response_model_exclude_none=True)
async def version_configuration(model: VersionDep, serving: ServingDep) -> ModelConfiguration:
    """The same, for a version by name."""
    return configure(model.manifest, serving.settings.engine)
