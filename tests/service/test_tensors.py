from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from service.errors import BadRequest, TooLarge
from service.tensors import DATATYPES, InputTensor, Tensor, led_by_length, read_tensors, split_body, write_response


def declare(datatype: str, shape: list[int], **more: Any) -> InputTensor:
    return InputTensor.model_validate({"name": "x", "datatype": datatype, "shape": shape, **more})


def read(datatype: str, shape: list[int], data: Any = None, binary: bytes | None = None) -> NDArray[Any]:
    more = {"data": data} if binary is None else {"parameters": {"binary_data_size": len(binary)}}
    (tensor,) = read_tensors([declare(datatype, shape, **more)], memoryview(binary or b""))
    return tensor.data


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    dtype = DATATYPES[datatype]
    elements = arrays.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return Tensor("x", datatype, draw(arrays.arrays(dtype, shape, elements=elements)))


@given(st.lists(st.tuples(tensors(), st.booleans()), min_size=1, max_size=4))
def test_what_is_written_is_read_again_bit_for_bit(sent: list[tuple[Tensor, bool]]) -> None:
    body, json_bytes = write_response({}, sent)
    document = json.loads(body[:json_bytes])
    assert (json_bytes is None) == (not any(as_binary for _, as_binary in sent))
    inputs = [InputTensor.model_validate(output) for output in document["outputs"]]
    received = read_tensors(inputs, memoryview(body)[json_bytes:] if json_bytes else memoryview(b""))
    for (tensor, _), again in zip(sent, received, strict=True):
        assert again.datatype == tensor.datatype
        assert again.data.dtype == tensor.data.dtype
        assert again.data.shape == tensor.data.shape
        assert again.data.tobytes() == tensor.data.tobytes()


@given(st.data())
def test_a_body_cut_anywhere_is_refused(data: st.DataObject) -> None:
    tensor = data.draw(tensors())
    content = tensor.data.tobytes()
    size = data.draw(st.integers(0, len(content) - 1))
    told = declare(tensor.datatype, list(tensor.data.shape), parameters={"binary_data_size": len(content)})
    with pytest.raises(BadRequest, match="announced"):
        read_tensors([told], memoryview(content[:size]))


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.data())
def test_elements_of_any_length_are_read_again_and_a_cut_is_noticed(sent: list[bytes], data: st.DataObject) -> None:
    content = led_by_length(sent)
    assert read("BYTES", [len(sent), 1], binary=content).tolist() == [[element] for element in sent]
    with pytest.raises(BadRequest, match=r"cut short|elements, but \d+ came"):
        read("BYTES", [len(sent)], binary=content[: data.draw(st.integers(0, len(content) - 1))])


def test_nested_and_flat_data_are_the_same() -> None:
    flat = read("UINT8", [2, 2, 1], [1, 2, 3, 4])
    nested = read("UINT8", [2, 2, 1], [[[1], [2]], [[3], [4]]])
    assert np.array_equal(flat, nested)
    assert nested.shape == (2, 2, 1)
    assert nested.dtype == np.uint8


def test_binary_data_are_little_endian_and_row_major() -> None:
    assert read("UINT16", [1, 2], binary=b"\x01\x00\x00\x02").tolist() == [[1, 512]]
    assert read("BOOL", [3], binary=b"\x01\x00\x01").tolist() == [True, False, True]


def test_binary_inputs_follow_each_other_and_json_ones_take_no_bytes() -> None:
    inputs = [
        declare("UINT8", [2], parameters={"binary_data_size": 2}),
        declare("UINT8", [1], data=[9]),
        declare("FP32", [1], parameters={"binary_data_size": 4}),
    ]
    read_back = read_tensors(inputs, memoryview(b"\x05\x06" + np.float32(0.5).tobytes()))
    assert [tensor.data.tolist() for tensor in read_back] == [[5, 6], [9], [0.5]]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "said"),
    [
        ("UINT8", [3], [1, 2], r"shape \[2\], announced is \[3\]"),
        ("UINT8", [2, 2], [[1, 2, 3, 4]], r"shape \[1, 4\], announced is \[2, 2\]"),
        ("UINT8", [3], [[1, 2], [3]], "differ in length"),
        ("UINT8", [3], [[1, 2], 3], "differ in length or depth"),
        ("UINT8", [1], [256], "outside what UINT8 can hold"),
        ("UINT8", [1], [-1], "outside what UINT8 can hold"),
        ("INT64", [1], [2**64], "outside what INT64 can hold"),
        ("FP64", [1], [10**400], "outside what FP64 can hold"),
        ("UINT8", [1], [1.5], "aren't all values that UINT8 takes"),
        ("UINT8", [2], [1, True], "aren't all values that UINT8 takes"),
        ("UINT8", [1], ["1"], "aren't all values that UINT8 takes"),
        ("FP32", [2], [0.5, None], "aren't all values that FP32 takes"),
        ("FP32", [1], ["nan"], "aren't all values that FP32 takes"),
        ("BOOL", [1], [1], "aren't all values that BOOL takes"),
        ("FP32", [1], [{}], "aren't all values that FP32 takes"),
        ("BYTES", [1], ["a"], "BYTES are taken as binary data alone"),
        ("TEXT", [1], ["a"], "datatype 'TEXT' isn't one of BOOL"),
        ("uint8", [1], [1], "datatype 'uint8' isn't one of"),
        ("UINT8", [1], None, "give one of data and parameters.binary_data_size"),
    ],
)
def test_json_data_that_dont_fit_are_refused_by_name(datatype: str, shape: list[int], data: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=f"^x: .*{said}"):
        read(datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "binary", "said"),
    [
        ("UINT8", [3], 2, b"ab", r"is 2, but shape \[3\] of UINT8 takes 3 bytes"),
        ("FP32", [2], 2, b"ab", r"takes 8 bytes"),
        ("UINT8", [10**12, 10**12], 2, b"ab", "takes 1000000000000000000000000 bytes"),
        ("UINT8", [2], -2, b"ab", "isn't a number of bytes"),
        ("UINT8", [2], "2", b"ab", "isn't a number of bytes"),
        ("UINT8", [1], True, b"a", "isn't a number of bytes"),
        ("UINT8", [3], 3, b"ab", "3 bytes announced, 2 came"),
        ("UINT8", [2], 2, b"abc", "3 bytes follow the JSON, but .* add up to 2"),
        ("BOOL", [2], 2, b"\x01\x02", "value 0 or 1"),
        ("BYTES", [1], 4, b"\xff\xff\xff\xff", "element 0 is cut short"),
        ("BYTES", [10**12, 10**12], 4, bytes(4), "has 1000000000000000000000000 elements, but 1 came"),
        ("BYTES", [1], 8, bytes(8), "has 1 elements, but more came"),
    ],
)
def test_binary_data_that_dont_fit_are_refused(
    datatype: str, shape: list[int], size: Any, binary: bytes, said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        read_tensors([declare(datatype, shape, parameters={"binary_data_size": size})], memoryview(binary))


def test_data_given_twice_are_refused() -> None:
    with pytest.raises(BadRequest, match="give one of"):
        read_tensors(
            [declare("UINT8", [1], data=[1], parameters={"binary_data_size": 1})],
            memoryview(b"a"),
        )


INPUT = {"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}


def test_a_body_is_split_where_its_header_says() -> None:
    head = json.dumps({"id": "7", "inputs": [INPUT], "somebody_elses": 1}).encode()
    document, binary = split_body(head + b"rest", str(len(head)), max_json_bytes=1000)
    assert document.id == "7"
    assert bytes(binary) == b"rest"
    document, binary = split_body(head, None, max_json_bytes=len(head))
    assert document.inputs[0].data == [1]
    assert bytes(binary) == b""


@pytest.mark.parametrize("length", ["", "0", "-1", "1.5", "x", "1000", "\u0663", "9" * 5000])
def test_a_header_that_doesnt_fit_the_body_is_refused(length: str) -> None:
    body = json.dumps({"inputs": [INPUT]}).encode()
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        split_body(body, length, max_json_bytes=1000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b'{"inputs": [' + b"[" * 99_998, "Invalid JSON"),
        (b"[]", "body"),
        (b"{}", "inputs: Field required"),
        (b'{"inputs": []}', "inputs: List should have at least 1"),
        (b'{"inputs": [{}]}', "inputs.0.name: Field required"),
        (
            json.dumps({"inputs": [{**INPUT, "shape": [-1]}]}).encode(),
            r"inputs.0.shape.0: .*greater than or equal to 0",
        ),
        (json.dumps({"inputs": [{**INPUT, "shape": [True]}]}).encode(), "inputs.0.shape.0: .*valid integer"),
        (json.dumps({"inputs": [{**INPUT, "shape": "1"}]}).encode(), "inputs.0.shape: .*valid array"),
        (json.dumps({"inputs": [{**INPUT, "shape": [1] * 33}]}).encode(), "inputs.0.shape: .*at most 32"),
        (json.dumps({"inputs": [INPUT], "parameters": []}).encode(), "parameters: .*an object"),
        (json.dumps({"inputs": [INPUT], "id": 7}).encode(), "id: .*valid string"),
    ],
)
def test_json_that_isnt_a_request_is_refused_with_its_place(text: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        split_body(text, None, max_json_bytes=1_000_000)


def test_json_has_a_limit_of_its_own() -> None:
    body = json.dumps({"inputs": [INPUT]}).encode()
    with pytest.raises(TooLarge, match="the limit; send tensors as binary data"):
        split_body(body, None, max_json_bytes=len(body) - 1)
