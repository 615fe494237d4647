"""The protocol's messages, made from a table when this module loads: no generated code, no compiler, any protobuf.

They live in a pool of their own, so that a client library with generated code for the same names can be in the same
process. Names that are nested in the protocol's own files are flat here, which the wire doesn't show.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto (repository)
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
https://github.com/grpc/grpc/blob/master/src/proto/grpc/health/v1/health.proto
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

INFERENCE = "inference"
HEALTH = "grpc.health.v1"

# `name number type`: `*` after a type is repeated, `map` a map from strings, `|` before a name one of a choice.
_SCHEMA: dict[str, dict[str, str]] = {
    INFERENCE: {
        "ServerLiveRequest": "",
        "ServerLiveResponse": "live 1 bool",
        "ServerReadyRequest": "",
        "ServerReadyResponse": "ready 1 bool",
        "ModelReadyRequest": "name 1 string, version 2 string",
        "ModelReadyResponse": "ready 1 bool",
        "ServerMetadataRequest": "",
        "ServerMetadataResponse": "name 1 string, version 2 string, extensions 3 string*",
        "ModelMetadataRequest": "name 1 string, version 2 string",
        "ModelMetadataResponse": "name 1 string, versions 2 string*, platform 3 string, inputs 4 TensorMetadata*, "
        "outputs 5 TensorMetadata*",
        "TensorMetadata": "name 1 string, datatype 2 string, shape 3 int64*",
        "InferParameter": "|bool_param 1 bool, |int64_param 2 int64, |string_param 3 string, |double_param 4 double, "
        "|uint64_param 5 uint64",
        "InferTensorContents": "bool_contents 1 bool*, int_contents 2 int32*, int64_contents 3 int64*, "
        "uint_contents 4 uint32*, uint64_contents 5 uint64*, fp32_contents 6 float*, fp64_contents 7 double*, "
        "bytes_contents 8 bytes*",
        "InferInputTensor": "name 1 string, datatype 2 string, shape 3 int64*, parameters 4 InferParameter map, "
        "contents 5 InferTensorContents",
        "InferRequestedOutputTensor": "name 1 string, parameters 2 InferParameter map",
        "ModelInferRequest": "model_name 1 string, model_version 2 string, id 3 string, "
        "parameters 4 InferParameter map, inputs 5 InferInputTensor*, outputs 6 InferRequestedOutputTensor*, "
        "raw_input_contents 7 bytes*",
        "InferOutputTensor": "name 1 string, datatype 2 string, shape 3 int64*, parameters 4 InferParameter map, "
        "contents 5 InferTensorContents",
        "ModelInferResponse": "model_name 1 string, model_version 2 string, id 3 string, "
        "parameters 4 InferParameter map, outputs 5 InferOutputTensor*, raw_output_contents 6 bytes*",
        "ModelConfigRequest": "name 1 string, version 2 string",
        "ModelConfigResponse": "config 1 ModelConfig",
        "ModelConfig": "name 1 string, platform 2 string, max_batch_size 4 int32, input 5 ModelInput*, "
        "output 6 ModelOutput*, backend 17 string",
        "ModelInput": "name 1 string, data_type 2 int32, dims 4 int64*, optional 8 bool",  # the type is an enumeration
        "ModelOutput": "name 1 string, data_type 2 int32, dims 3 int64*",
        "RepositoryIndexRequest": "repository_name 1 string, ready 2 bool",
        "RepositoryIndexResponse": "models 1 ModelIndex*",
        "ModelIndex": "name 1 string, version 2 string, state 3 string, reason 4 string",
        "ModelRepositoryParameter": "|bool_param 1 bool, |int64_param 2 int64, |string_param 3 string, "
        "|bytes_param 4 bytes",
        "RepositoryModelLoadRequest": "repository_name 1 string, model_name 2 string, "
        "parameters 3 ModelRepositoryParameter map",
        "RepositoryModelLoadResponse": "model_name 1 string, isLoaded 2 bool",  # KServe's; Triton's has no fields
        "RepositoryModelUnloadRequest": "repository_name 1 string, model_name 2 string, "
        "parameters 3 ModelRepositoryParameter map",
        "RepositoryModelUnloadResponse": "model_name 1 string, isUnloaded 2 bool",  # KServe's, too
    },
    HEALTH: {
        "HealthCheckRequest": "service 1 string",
        "HealthCheckResponse": "status 1 int32",  # an enumeration, which the wire doesn't tell from a number
    },
}
_CHOICE = "parameter_choice"
_FIELD = re.compile(r"(\|?)(\w+) (\d+) (\w+)(\*| map|)")
_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def chosen(parameter: Any) -> Any:
    """The value of an `InferParameter` or `ModelRepositoryParameter`; None if it has none."""
    name = parameter.WhichOneof(_CHOICE)
    return None if name is None else getattr(parameter, name)


def _file(package: str, messages: dict[str, str]) -> FileDescriptorProto:
    file = FileDescriptorProto(name=f"skipvit/{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            _add_field(package, message, field)
    return file


def _add_field(package: str, message: DescriptorProto, text: str) -> None:
    found = _FIELD.fullmatch(text)
    assert found is not None, f"{message.name}: {text!r} is no field. This is a bug."
    choice, name, number, kind, many = found.groups()
    field = message.field.add(name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
    if choice:
        if not message.oneof_decl:
            message.oneof_decl.add(name=_CHOICE)
        field.oneof_index = 0
    if many:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if many == " map":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(package, entry, "key 1 string")
        _add_field(package, entry, f"value 2 {kind}")
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{package}.{message.name}.{entry.name}"
    elif kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{package}.{kind}"


def _make() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    for package, messages in _SCHEMA.items():
        pool.AddSerializedFile(_file(package, messages).SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for package, messages in _SCHEMA.items()
        for name in messages
    }


MESSAGES = _make()  # classes by name; what they are is known only here and now, so they are typed as Any
