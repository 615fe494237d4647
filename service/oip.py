"""What the Open Inference Protocol's documents mean for the served model: its metadata, and what a request asks of it.

Pure. It knows the manifest and arrays; it knows no wire format (`tensors.py`), no HTTP and no queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.artifact import Manifest
from service.errors import BadRequest, TooLarge
from service.oip_schemas import ModelConfiguration, ModelMetadata, TensorConfiguration, TensorMetadata
from service.schemas import SpendQuery
from service.settings import EngineName
from service.tensors import (
    BINARY_DATA,
    BYTES,
    InferenceRequest,
    InputTensor,
    Parameters,
    RequestedOutput,
    Tensor,
    read_tensors,
)

Flag = TypeVar("Flag", bool, None)

PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "torchscript": "pytorch_libtorch"}  # as Triton names them
BACKENDS = {"onnxruntime": "onnxruntime", "torchscript": "pytorch"}
EXTENSIONS = ["binary_tensor_data", "model_repository", "model_configuration"]
# Numbers of its enumeration, for those in use.
TRITON_TYPES = {"TYPE_BOOL": 1, "TYPE_UINT8": 2, "TYPE_INT32": 8, "TYPE_FP32": 11, "TYPE_STRING": 13}
MAX_TIMEOUT_US = 600_000_000
_MAX_JSON_BYTES_PER_VALUE = 8  # three digits, a comma, a space and brackets
_JSON_BYTES_BESIDE_IMAGES = 65536

ENCODED = "encoded_images"  # in the place of `images`: JPEG, PNG or WebP, which the server decodes and resizes
OUTPUTS = {"logits": "FP32", "kept": "BOOL", "macs_ratio": "FP32", "size_px": "INT32"}
_DATATYPES = {"images": "UINT8", "threshold": "FP32", ENCODED: BYTES}
_SPEND = tuple(name for name in SpendQuery.model_fields if name != "model")  # parameters, with encoded images
_OURS = ("threshold", "degrade", "timeout", "binary_data_output")
# Reserved by the protocol's servers and clients; nothing here depends on them.
_IGNORED = ("priority", "sequence_id", "sequence_start", "sequence_end", "headers", "content_type")
_UNSUPPORTED = ("classification", "shared_memory_region")


class Asked(NamedTuple):
    """A request with tensors, understood."""

    images: NDArray[np.uint8]  # (B, S, S, 3), S one of the bundle's sizes
    thresholds: list[float] | None  # one for each image; None: the service's default
    degrade: bool | None  # whether load and the deadline may raise the thresholds; None: load may, of the default
    timeout_s: float | None
    outputs: tuple[tuple[str, bool], ...]  # name, and whether to send it as binary data

    @property
    def size_px(self) -> int:
        return int(self.images.shape[1])


class AskedEncoded(NamedTuple):
    """A request with encoded images, understood: what `/v1/classify` takes as its query."""

    encoded: list[bytes]
    spend: SpendQuery
    timeout_s: float | None
    outputs: tuple[tuple[str, bool], ...]  # name, and whether to send it as binary data


def describe(manifest: Manifest, engine: EngineName) -> ModelMetadata:
    """The model's metadata; sizes that differ between its graphs are -1."""
    patches = {graph.patches for graph in manifest.graphs}
    side = manifest.full.size_px if len(manifest.graphs) == 1 else -1
    return ModelMetadata(
        name=manifest.name,
        versions=[manifest.version],
        platform=PLATFORMS[engine],
        inputs=[
            TensorMetadata(name="images", datatype="UINT8", shape=[-1, side, side, 3]),
            TensorMetadata(name="threshold", datatype="FP32", shape=[-1], optional=True),
            TensorMetadata(name=ENCODED, datatype=BYTES, shape=[-1], optional=True),
        ],
        outputs=[
            TensorMetadata(name="logits", datatype="FP32", shape=[-1, len(manifest.labels)]),
            TensorMetadata(
                name="kept", datatype="BOOL", shape=[-1, manifest.layers, patches.pop() if len(patches) == 1 else -1]
            ),
            TensorMetadata(name="macs_ratio", datatype="FP32", shape=[-1]),
            TensorMetadata(name="size_px", datatype="INT32", shape=[-1]),
        ],
    )


def configure(manifest: Manifest, engine: EngineName) -> ModelConfiguration:
    """The same as Triton's configuration says it."""

    def of(tensor: TensorMetadata) -> TensorConfiguration:
        kind = "TYPE_STRING" if tensor.datatype == BYTES else f"TYPE_{tensor.datatype}"
        return TensorConfiguration(name=tensor.name, data_type=kind, dims=tensor.shape, optional=tensor.optional)

    metadata = describe(manifest, engine)
    inputs, outputs = ([of(tensor) for tensor in tensors] for tensors in (metadata.inputs, metadata.outputs))
    return ModelConfiguration(
        name=metadata.name, platform=metadata.platform, backend=BACKENDS[engine], input=inputs, output=outputs
    )


def max_json_bytes(manifest: Manifest, max_images: int) -> int:
    """Bytes of JSON that `max_images` images of the largest size can take."""
    values = max_images * max(manifest.sizes_px) ** 2 * 3
    return values * _MAX_JSON_BYTES_PER_VALUE + _JSON_BYTES_BESIDE_IMAGES


def understand(
    manifest: Manifest, request: InferenceRequest, binary: memoryview, *, max_images: int
) -> Asked | AskedEncoded:
    """What a request asks, checked in full; `images` may be a view of `binary`. Images are decoded later.

    Raises:
        BadRequest: something the model doesn't take; the message names it.
        TooLarge: more than `max_images` images.
    """
    _check_names([tensor.name for tensor in request.inputs], tuple(_DATATYPES), "input")
    declared = {tensor.name: tensor for tensor in request.inputs}
    if "images" not in declared and ENCODED not in declared:
        raise BadRequest(f"the input 'images' is missing, or {ENCODED!r} in its place")
    for tensor in request.inputs:
        if tensor.datatype != _DATATYPES[tensor.name]:
            raise BadRequest(f"{tensor.name}: the datatype is {_DATATYPES[tensor.name]}, not {tensor.datatype[:40]!r}")
    if ENCODED in declared:
        return _understand_encoded(request, binary, max_images)
    _check_shapes(manifest, declared, max_images)
    _check_parameters(request.parameters, _OURS)
    tensors = {tensor.name: tensor for tensor in read_tensors(request.inputs, binary)}
    images = tensors["images"].data
    return Asked(
        images=images,
        thresholds=_thresholds(request.parameters, tensors.get("threshold"), rows=len(images)),
        degrade=_flag(request.parameters, "degrade", default=None),
        timeout_s=_timeout_s(request.parameters),
        outputs=_outputs(request.outputs, request.parameters, ("logits", "kept")),
    )


def _understand_encoded(request: InferenceRequest, binary: memoryview, max_images: int) -> AskedEncoded:
    for tensor in request.inputs:
        if tensor.name != ENCODED:
            raise BadRequest(f"{ENCODED} comes alone, without {tensor.name}: what to spend is said by parameters")
    shape = request.inputs[0].shape
    rows = shape[0] if shape else 0
    if shape not in ([rows], [rows, 1]):
        raise BadRequest(f"{ENCODED}: shape {shape} isn't [images]")
    _check_count(ENCODED, rows, max_images)
    _check_parameters(request.parameters, tuple(dict.fromkeys((*_SPEND, *_OURS))))
    outputs = _outputs(request.outputs, request.parameters, ("logits", "macs_ratio", "size_px"))
    if any(name == "kept" for name, _ in outputs):
        raise BadRequest(
            f"kept: with {ENCODED} each image may end at another input size; send images of one size to see it, or "
            "ask /v1/classify with explain=mask"
        )
    (images,) = read_tensors(request.inputs, binary)
    return AskedEncoded(
        images.data.ravel().tolist(), _spend(request.parameters), _timeout_s(request.parameters), outputs
    )


def _spend(parameters: Parameters) -> SpendQuery:
    given = {name: parameters[name] for name in _SPEND if parameters.get(name) is not None}
    try:
        return SpendQuery.model_validate(given, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"parameters.{where}: {str(given.get(where))[:40]} is refused: {first['msg']}") from None


def _check_names(names: Sequence[str], known: tuple[str, ...], kind: str) -> None:
    for name in names:
        if name not in known:
            raise BadRequest(f"unknown {kind} {name[:100]!r}; there are {', '.join(known)}")
        if names.count(name) > 1:
            raise BadRequest(f"the {kind} {name!r} is there more than once")


def _check_shapes(manifest: Manifest, declared: dict[str, InputTensor], max_images: int) -> None:
    """Before any data are read: rows within the limit, a size that there is, a threshold for each row."""
    shape = declared["images"].shape
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise BadRequest(f"images: shape {shape} isn't [images, size, size, 3], channels last")
    rows, size_px = shape[:2]
    if size_px not in manifest.sizes_px:
        sizes = ", ".join(str(size) for size in manifest.sizes_px)
        raise BadRequest(f"images: {size_px} px isn't one of the model's input sizes, {sizes}")
    _check_count("images", rows, max_images)
    if "threshold" in declared and declared["threshold"].shape not in ([rows], [rows, 1]):
        raise BadRequest(f"threshold: shape {declared['threshold'].shape} isn't [{rows}], one for each image")


def _check_count(name: str, rows: int, max_images: int) -> None:
    if rows == 0:
        raise BadRequest(f"{name}: there are none")
    if rows > max_images:
        raise TooLarge(f"{name}: {rows} in one request; the limit is {max_images}")


def _check_parameters(parameters: Parameters, known: tuple[str, ...]) -> None:
    for name in parameters:
        if name in (*known, *_IGNORED) or name.startswith("triton_"):
            continue
        if name in _SPEND:
            raise BadRequest(f"parameters.{name}: a tensor comes at one size; send {ENCODED} for that")
        raise BadRequest(f"unknown parameter {name[:100]!r}; known are {', '.join(known)}")


def _thresholds(parameters: Parameters, tensor: Tensor | None, *, rows: int) -> list[float] | None:
    scalar = parameters.get("threshold")
    if scalar is not None and tensor is not None:
        raise BadRequest("give the parameter threshold or the input threshold, not both")
    if scalar is not None:
        if type(scalar) not in (int, float) or not 0 <= scalar <= 1:
            raise BadRequest(f"parameters.threshold: {str(scalar)[:40]} isn't a number from 0 to 1")
        return [float(scalar)] * rows
    if tensor is None:
        return None
    values: list[float] = tensor.data.ravel().tolist()
    for row, value in enumerate(values):
        if not 0 <= value <= 1:  # NaN neither
            raise BadRequest(f"threshold: {value} (image {row}) isn't from 0 to 1")
    return values


def _timeout_s(parameters: Parameters) -> float | None:
    timeout_us = parameters.get("timeout", 0)
    if type(timeout_us) is not int or not 0 <= timeout_us <= MAX_TIMEOUT_US:
        raise BadRequest(
            f"parameters.timeout: {str(timeout_us)[:40]} isn't a whole number of microseconds up to {MAX_TIMEOUT_US}"
        )
    return timeout_us / 1e6 or None  # the protocol's 0 is the service's default


def _outputs(
    requested: Sequence[RequestedOutput], parameters: Parameters, default: tuple[str, ...]
) -> tuple[tuple[str, bool], ...]:
    _check_names([output.name for output in requested], tuple(OUTPUTS), "output")
    everything = _flag(parameters, "binary_data_output", default=False)
    for output in requested:
        for name in _UNSUPPORTED:
            if name in output.parameters:
                raise BadRequest(f"{output.name}: the parameter {name!r} isn't supported")
    chosen = tuple((output.name, _flag(output.parameters, BINARY_DATA, default=everything)) for output in requested)
    return chosen or tuple((name, everything) for name in default)


def _flag(parameters: Parameters, name: str, *, default: Flag) -> bool | Flag:
    value = parameters.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"parameters.{name}: {str(value)[:40]} isn't true or false")
    return value


def answer_head(manifest: Manifest, request_id: str | None, *, degraded: bool, cached: bool) -> dict[str, Any]:
    """What an answer's JSON says beside its outputs."""
    head: dict[str, Any] = {"model_name": manifest.name, "model_version": manifest.version}
    if request_id is not None:
        head["id"] = request_id
    said = {"degraded": degraded, "cached": cached}
    if parameters := {name: True for name, value in said.items() if value}:
        head["parameters"] = parameters
    return head
