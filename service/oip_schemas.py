"""What goes over the wire at `/v2`, beside what `tensors.py` reads and writes: metadata, states, answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.tensors import JSON_LENGTH

INFERENCE_REQUEST: dict[str, Any] = {
    "required": True,
    "description": "`$inference_request` of the protocol. With the binary tensor extension the JSON comes first, "
    f"`{JSON_LENGTH}` says how long it is, and the tensors' bytes follow in the order of the inputs. "
    "Inputs: `images` UINT8 [B, size, size, 3] and, optionally, `threshold` FP32 [B]; or, as binary data, "
    "`encoded_images` BYTES [B]: JPEG, PNG or WebP. Parameters: `threshold`, `degrade` (whether load and the deadline "
    "may lower the compute), `timeout` (microseconds), `binary_data_output`; with `encoded_images` also `preset`, "
    "`compute`, `size`, `sure` and `again`, as `/v1/classify` has them.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "parameters": {"type": "object"},
                    "inputs": {"type": "array", "items": {"type": "object"}},
                    "outputs": {"type": "array", "items": {"type": "object"}},
                },
            },
            "example": {
                "id": "42",
                "parameters": {"threshold": 0.5},
                "inputs": [
                    {
                        "name": "images",
                        "datatype": "UINT8",
                        "shape": [1, 112, 112, 3],
                        "parameters": {"binary_data_size": 37632},
                    }
                ],
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
            },
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


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
