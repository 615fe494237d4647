"""Tensors on the wire, as the Open Inference Protocol writes them: in JSON or, by its extension, as bytes after it.

Pure. It knows datatypes, shapes and where bytes lie; it knows no model and no HTTP.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import BadRequest, TooLarge

BINARY_DATA, BINARY_DATA_SIZE = "binary_data", "binary_data_size"  # parameters of an output, of an input
JSON_LENGTH = "Inference-Header-Content-Length"
BYTES = "BYTES"  # elements vary in length: each is led by it
LENGTH_BYTES = 4  # little-endian
# Three bytes of JSON make a list of a hundred in memory, and parsing halts the whole process: a tenth of a second for
# so many, which are seven images of 112 x 112 pixels, each pixel a list.
MAX_LISTS = 100_000
# Little-endian, row-major, no padding; BOOL is one byte, 0 or 1.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}  # by the dtype's kind

Parameters = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # other keys are for other servers and pass


class InputTensor(_Strict):
    """`$request_input`: what the JSON part says of one input."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=32)
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(_Strict):
    """`$request_output`."""

    name: str
    parameters: Parameters = {}


class InferenceRequest(_Strict):
    """`$inference_request`: the JSON part of a request."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] = []


class Tensor(NamedTuple):
    """A named array; its dtype is one of `DATATYPES`, or object for `BYTES`."""

    name: str
    datatype: str
    data: NDArray[Any]


def split_body(body: bytes, json_bytes: str | None, *, max_json_bytes: int) -> tuple[InferenceRequest, memoryview]:
    """The JSON part of a body, validated, and the bytes after it.

    Args:
        body: the whole body.
        json_bytes: the header `Inference-Header-Content-Length`; None says that the body is JSON and nothing else.
        max_json_bytes: JSON grows when it's parsed, so it has a limit of its own.

    Raises:
        BadRequest: no valid JSON, or a header that doesn't fit the body; the message says where.
        TooLarge: more JSON than the limit.
    """
    if json_bytes is None:
        length = len(body)
    elif not (json_bytes.isascii() and json_bytes.isdecimal() and 0 < int(json_bytes[:20]) <= len(body)):
        raise BadRequest(
            f"Inference-Header-Content-Length: {json_bytes[:40]!r} isn't a length of JSON within the body's "
            f"{len(body)} bytes"
        )
    else:
        length = int(json_bytes)
    if length > max_json_bytes:
        raise TooLarge(f"{length} bytes of JSON are more than {max_json_bytes}, the limit; send tensors as binary data")
    if body.count(b"[", 0, length) + body.count(b"{", 0, length) > MAX_LISTS:
        raise TooLarge(f"more than {MAX_LISTS} lists in the JSON, the limit; send tensors flat or as binary data")
    try:
        return InferenceRequest.model_validate_json(body[:length]), memoryview(body)[length:]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"{where}: {first['msg']}") from None


def read_tensors(inputs: Sequence[InputTensor], binary: memoryview) -> list[Tensor]:
    """The inputs as arrays of their shapes, in their order; binary ones are views of `binary`, read-only.

    Those of BYTES are copies, and come as binary data alone: encoded images aren't text.

    Raises:
        BadRequest: data, shape, datatype and sizes don't agree; the message names the tensor.
    """
    tensors = []
    offset = 0
    for tensor in inputs:
        dtype = np.dtype(object) if tensor.datatype == BYTES else DATATYPES.get(tensor.datatype)
        if dtype is None:
            known = ", ".join((*DATATYPES, BYTES))
            raise BadRequest(f"{tensor.name}: datatype {tensor.datatype[:40]!r} isn't one of {known}")
        size_bytes = tensor.parameters.get(BINARY_DATA_SIZE)
        if (size_bytes is None) == (tensor.data is None):
            raise BadRequest(f"{tensor.name}: give one of data and parameters.{BINARY_DATA_SIZE}")
        if tensor.data is not None:
            array = _from_json(tensor, tensor.data, dtype)
        else:
            data = _announced(tensor, binary[offset:], size_bytes)
            array = _strings(tensor, data) if dtype.kind == "O" else _from_bytes(tensor, data, dtype)
            offset += len(data)
        tensors.append(Tensor(tensor.name, tensor.datatype, array))
    if offset != len(binary):
        raise BadRequest(f"{len(binary)} bytes follow the JSON, but the inputs' {BINARY_DATA_SIZE} add up to {offset}")
    return tensors


def write_response(head: dict[str, Any], outputs: Sequence[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """The body of an answer, and the bytes of its JSON part if binary data follow it (None: they don't).

    Args:
        head: what the JSON says beside the outputs.
        outputs: tensors in the order to send; True sends one as binary data.
    """
    described = []
    binary = []
    for tensor, as_binary in outputs:
        array = np.ascontiguousarray(tensor.data, DATATYPES[tensor.datatype])
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if as_binary:
            entry["parameters"] = {BINARY_DATA_SIZE: array.nbytes}
            binary.append(array.tobytes())
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False).encode()
    return b"".join((text, *binary)), len(text) if binary else None


def _announced(tensor: InputTensor, rest: memoryview, size_bytes: object) -> memoryview:
    """A tensor's own bytes, the first of what is left."""
    if type(size_bytes) is not int or size_bytes < 0:
        raise BadRequest(f"{tensor.name}: {BINARY_DATA_SIZE} isn't a number of bytes: {str(size_bytes)[:40]!r}")
    if size_bytes > len(rest):
        raise BadRequest(f"{tensor.name}: {size_bytes} bytes announced, {len(rest)} came")
    return rest[:size_bytes]


def _from_bytes(tensor: InputTensor, data: memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    count = math.prod(tensor.shape)
    if len(data) != count * dtype.itemsize:
        raise BadRequest(
            f"{tensor.name}: {BINARY_DATA_SIZE} is {len(data)}, but shape {tensor.shape} of {tensor.datatype} takes "
            f"{count * dtype.itemsize} bytes"
        )
    if dtype.kind == "b":
        values = np.frombuffer(data, np.uint8, count)
        if count and values.max() > 1:
            raise BadRequest(f"{tensor.name}: a BOOL is a byte of value 0 or 1")
        return values.view(np.bool_).reshape(tensor.shape)
    return np.frombuffer(data, dtype, count).reshape(tensor.shape)


def led_by_length(elements: Iterable[bytes]) -> bytes:
    """Elements of BYTES as binary data."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(LENGTH_BYTES, "little"), element))


def _strings(tensor: InputTensor, data: memoryview) -> NDArray[np.object_]:
    """Elements of BYTES, as bytes."""
    count, offset = math.prod(tensor.shape), 0
    found: list[bytes] = []
    while offset < len(data) and len(found) <= count:
        start = offset + LENGTH_BYTES
        end = start + int.from_bytes(data[offset:start], "little")
        if end > len(data):
            raise BadRequest(
                f"{tensor.name}: element {len(found)} is cut short: {LENGTH_BYTES} bytes of length, then so many"
            )
        found.append(bytes(data[start:end]))
        offset = end
    if len(found) != count:
        more = "more" if len(found) > count else str(len(found))
        raise BadRequest(f"{tensor.name}: shape {tensor.shape} has {count} elements, but {more} came")
    elements = np.empty(count, object)
    elements[:] = found
    return elements.reshape(tensor.shape)


def _from_json(tensor: InputTensor, data: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "O":
        raise BadRequest(f"{tensor.name}: {BYTES} are taken as binary data alone ({BINARY_DATA_SIZE}), not in JSON")
    # Types are looked at before numpy sees the values: it would make numbers of strings and nulls, and of one long
    # string among many short ones an array in which all are long.
    leaves, shape = _flatten(tensor.name, data)
    if len(leaves) != math.prod(tensor.shape) or (len(shape) > 1 and shape != tensor.shape):
        raise BadRequest(f"{tensor.name}: the data have shape {shape}, announced is {tensor.shape}")
    if not set(map(type, leaves)) <= _JSON_TYPES[dtype.kind]:
        raise BadRequest(f"{tensor.name}: the data aren't all values that {tensor.datatype} takes")
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is what it is in this datatype
            return np.array(leaves, dtype).reshape(tensor.shape)
    except OverflowError:
        raise BadRequest(f"{tensor.name}: a value is outside what {tensor.datatype} can hold") from None


def _flatten(name: str, data: list[Any]) -> tuple[list[Any], list[int]]:
    """The values of nested lists in row-major order, and the lists' shape."""
    shape = [len(data)]
    while list in (types := set(map(type, data))):
        if len(types) > 1 or len(lengths := set(map(len, data))) > 1:
            raise BadRequest(f"{name}: the data's lists differ in length or depth")
        shape.extend(lengths)
        data = list(chain.from_iterable(data))
    return data, shape
