"""`ModelInfer` as the REST request that it stands for, tensors as binary data, and the answer back. Pure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from service.errors import BadRequest
from service.oip import MAX_TIMEOUT_US
from service.rpc.gateway import Reply
from service.rpc.messages import MESSAGES, chosen
from service.tensors import BINARY_DATA, BINARY_DATA_SIZE, BYTES, DATATYPES, JSON_LENGTH, LENGTH_BYTES, led_by_length

# What the model's inputs are; others are refused.
_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}
_FRACTIONS = ("threshold", "compute", "sure")  # parameters


def write_head(request: Any, time_left_s: float | None) -> bytes:
    """The JSON part of the request.

    Args:
        request: a `ModelInferRequest`.
        time_left_s: until the RPC's deadline; of that and the parameter `timeout` the shorter one counts.
    """
    parameters = {name: chosen(value) for name, value in request.parameters.items()}
    for name in _FRACTIONS:
        if isinstance(text := parameters.get(name), str):  # not every client can send a double
            parameters[name] = _number(text)
    if time_left_s is not None:
        left_us = min(max(1, int(time_left_s * 1e6)), MAX_TIMEOUT_US)
        timeout_us = parameters.get("timeout")
        if timeout_us in (None, 0) or (isinstance(timeout_us, int) and timeout_us > left_us):
            parameters["timeout"] = left_us
    document = {
        "parameters": {**parameters, "binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {BINARY_DATA_SIZE: _size_bytes(request, index)},
            }
            for index, tensor in enumerate(request.inputs)
        ],
        "outputs": [
            {
                "name": output.name,
                "parameters": {name: chosen(value) for name, value in output.parameters.items() if name != BINARY_DATA},
            }
            for output in request.outputs
        ],
    }
    return json.dumps({"id": request.id, **document} if request.id else document).encode()


def write_tensors(request: Any) -> bytes:
    """The bytes of all inputs in their order; BadRequest if they aren't given in one of the protocol's two ways."""
    raw = request.raw_input_contents
    if raw:
        if len(raw) != len(request.inputs) or any(tensor.HasField("contents") for tensor in request.inputs):
            raise BadRequest(
                f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; give one for each, and no contents"
            )
        return raw[0] if len(raw) == 1 else b"".join(raw)
    return b"".join(_typed_bytes(tensor) for tensor in request.inputs)


def read_response(reply: Reply) -> Any:
    """The `ModelInferResponse` that an answer of REST stands for."""
    length = int(reply.headers[JSON_LENGTH])
    document = json.loads(reply.body[:length])
    outputs, contents, offset = [], [], length
    for output in document["outputs"]:
        size_bytes = output["parameters"][BINARY_DATA_SIZE]
        outputs.append(
            MESSAGES["InferOutputTensor"](name=output["name"], datatype=output["datatype"], shape=output["shape"])
        )
        contents.append(reply.body[offset : offset + size_bytes])
        offset += size_bytes
    return MESSAGES["ModelInferResponse"](
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
        parameters={
            name: MESSAGES["InferParameter"](bool_param=value) for name, value in document.get("parameters", {}).items()
        },
        outputs=outputs,
        raw_output_contents=contents,
    )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # refused by name where thresholds are checked


def _size_bytes(request: Any, index: int) -> int:
    if request.raw_input_contents:
        return len(request.raw_input_contents[index]) if index < len(request.raw_input_contents) else 0
    tensor = request.inputs[index]
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        return 0
    values = getattr(tensor.contents, field)
    if tensor.datatype == BYTES:
        return sum(LENGTH_BYTES + len(value) for value in values)
    return len(values) * DATATYPES[tensor.datatype].itemsize


def _typed_bytes(tensor: Any) -> bytes:
    wanted = _CONTENTS.get(tensor.datatype)
    if wanted is None:
        return b""  # a datatype that no input has
    if others := [field.name for field, _ in tensor.contents.ListFields() if field.name != wanted]:
        raise BadRequest(f"{tensor.name}: {tensor.datatype} data belong in {wanted}, not in {others[0]}")
    if tensor.datatype == BYTES:
        return led_by_length(getattr(tensor.contents, wanted))
    try:
        return np.array(getattr(tensor.contents, wanted), DATATYPES[tensor.datatype]).tobytes()
    except OverflowError:
        raise BadRequest(f"{tensor.name}: a value is outside what {tensor.datatype} can hold") from None
