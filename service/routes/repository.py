"""`/v2/repository`: which models there are, and load, reload and unload, by Triton's model repository extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from service.body import read_body
from service.errors import BadRequest, NotAllowed
from service.repository import ModelState, State
from service.routes.v2 import PROTOCOL_RESPONSES
from service.serving import Serving, ServingDep

_MAX_BODY_BYTES = 65536

router = APIRouter(prefix="/v2/repository", tags=["model repository"], responses=PROTOCOL_RESPONSES)


class IndexEntry(BaseModel):
    """A model of the repository; `reason` says why it isn't ready, or what its last reload failed of."""

    name: str
    version: str
    state: State
    reason: str


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True)  # other keys are for other servers and pass

    ready: bool = False
    parameters: dict[str, Any] = {}


async def asked(request: Request, serving: ServingDep) -> _Asked:
    """The body, which all three calls may leave out."""
    body = await read_body(request, _MAX_BODY_BYTES, serving.bodies)
    try:
        return _Asked.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"{where}: {first['msg']}") from None


AskedDep = Annotated[_Asked, Depends(asked)]


def _schema(*names: str) -> dict[str, Any]:
    known = {"ready": {"type": "boolean"}, "parameters": {"type": "object"}}
    schema = {"type": "object", "properties": {name: known[name] for name in names}}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


@router.post("/index", openapi_extra=_schema("ready"))
async def index(serving: ServingDep, body: AskedDep) -> list[IndexEntry]:
    """Every model that the repository holds, or with `ready` those that are served."""
    return [_entry(state) for state in await serving.repository.index(only_ready=body.ready)]


@router.post("/models/{name}/load", openapi_extra=_schema("parameters"))
async def load(name: str, serving: ServingDep, body: AskedDep) -> IndexEntry:
    """Load the model, or load it anew if its files have changed; answers when it is served. Loses no request."""
    _check_control(serving)
    for parameter in body.parameters:
        if parameter == "config" or parameter.startswith("file:"):
            raise BadRequest(f"the parameter {parameter[:100]!r} isn't supported: models come from the repository only")
    await serving.repository.load(name)
    return await _found(serving, name)


@router.post("/models/{name}/unload", openapi_extra=_schema("parameters"))
async def unload(name: str, serving: ServingDep, body: AskedDep) -> IndexEntry:
    """Serve the model no more; requests that have chosen it still finish. The default model can't be unloaded."""
    _check_control(serving)
    await serving.repository.unload(name)
    return await _found(serving, name)


def _check_control(serving: Serving) -> None:
    if not serving.settings.repository_control:
        raise NotAllowed("loading and unloading over the API are off (SKIPVIT_REPOSITORY_CONTROL)")


async def _found(serving: Serving, name: str) -> IndexEntry:
    (state,) = (state for state in await serving.repository.index() if state.name == name)
    return _entry(state)


def _entry(state: ModelState) -> IndexEntry:
    return IndexEntry(**state._asdict())
