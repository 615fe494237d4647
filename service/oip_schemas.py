"""What goes over the wire at `/v2`, beside what `tensors.py` reads and writes: metadata, states, answers."""

from __future__ import annotations

from pydantic import BaseModel


class ServerMetadata(BaseModel):
    """`GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """One input or output; -1 is any length."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool | None = None


class ModelMetadata(BaseModel):
    """`GET /v2/models/{name}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfiguration(BaseModel):
    """One input or output, as Triton's configuration writes it."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool | None = None


class ModelConfiguration(BaseModel):
    """`GET /v2/models/{name}/config`."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = 0  # for Triton: the first dimension is one of the model's own, and so in its shapes
    input: list[TensorConfiguration]
    output: list[TensorConfiguration]


class ProtocolError(BaseModel):
    """Every error under `/v2`."""

    error: str


class Live(BaseModel):
    """Whether the server makes progress."""

    live: bool


class Ready(BaseModel):
    """Whether the server takes traffic."""

    ready: bool


class ModelReady(Ready):
    """Whether the model takes traffic."""

    name: str


class OutputTensor(BaseModel):
    """`$response_output`; `data` is absent where binary data follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float | bool] | None = None


class InferenceResponse(BaseModel):
    """`$inference_response`."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, bool] | None = None  # `degraded`, if it had less compute than asked
    outputs: list[OutputTensor]
