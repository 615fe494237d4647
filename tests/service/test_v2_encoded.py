"""Encoded images over the Open Inference Protocol: what `/v1/classify` takes, as a tensor of BYTES."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from starlette.testclient import TestClient

from service.app import create_app
from service.budget import solve
from service.errors import Overloaded
from service.rpc.messages import MESSAGES
from service.settings import Settings
from service.tensors import led_by_length
from tests.fakes import CLASSES, FakeEngine, fake_bundle, fake_manifest
from tests.images import encode, gradient, plain
from tests.service.live import ask, live_server
from tests.service.test_live import held, metric
from tests.service.test_ops import value
from tests.service.test_rpc import channel, failure, grpc_port, parameter, rpc, rpc_server
from tests.service.test_rpc import outputs as rpc_outputs
from tests.service.test_v2 import LENGTH, URL, Response, outputs, pixels, triton_inputs

DOUBTFUL, CERTAIN = plain(7), plain(203)  # both class 3, with probabilities of 0.949 and 0.977
SMALL, FULL = 17500, 53500  # MACs


def post(
    client: TestClient, *images: bytes, shape: list[int] | None = None, binary: bytes | None = None, **more: Any
) -> Response:
    content = led_by_length(images) if binary is None else binary
    tensor = {
        "name": "encoded_images",
        "datatype": "BYTES",
        "shape": [len(images)] if shape is None else shape,
        "parameters": {"binary_data_size": len(content)},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return client.post(URL, content=head + content, headers={LENGTH: str(len(head))})


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"preset": "economy"},
        {"preset": "full"},
        {"compute": 0.5},
        {"compute": 0.7, "size": 28},
        {"threshold": 0.5},
        {"threshold": 0.25, "size": 14},
        {"size": 14, "threshold": 0, "sure": 0.96},
        {"threshold": 0, "sure": 1, "size": 14, "again": 28, "degrade": False},
    ],
    ids=str,
)
def test_the_answers_are_classifys(client: TestClient, query: dict[str, Any]) -> None:
    files = [("image", ("x", image, "image/png")) for image in (DOUBTFUL, CERTAIN)]
    expected = client.post("/v1/classify", files=files, params=query | {"top_k": CLASSES}).json()["results"]
    found = outputs(post(client, DOUBTFUL, CERTAIN, parameters=query))
    assert list(found) == ["logits", "macs_ratio", "size_px"]
    assert found["size_px"].tolist() == [result["size_px"] for result in expected]
    assert found["macs_ratio"].tolist() == pytest.approx([result["macs"]["ratio"] for result in expected])
    for logits, result in zip(found["logits"], expected, strict=True):
        odds = np.exp(logits) / np.exp(logits).sum()
        for prediction in result["predictions"]:
            assert odds[prediction["index"]] == pytest.approx(prediction["probability"], rel=1e-5)


def test_in_one_request_some_are_looked_at_twice(client: TestClient, engine: FakeEngine) -> None:
    found = outputs(post(client, DOUBTFUL, CERTAIN, parameters={"size": 14, "threshold": 0, "sure": 0.96}))
    assert found["size_px"].tolist() == [28, 14]
    assert found["macs_ratio"].tolist() == pytest.approx([(SMALL + FULL) / FULL, SMALL / FULL])
    assert engine.batches[-2:] == [[7, 203], [7]]
    assert value(client, 'skipvit_second_looks_total{model="fake"}') == 1
    assert value(client, 'skipvit_requests_total{model="fake",outcome="ok"}') == 1
    assert value(client, "skipvit_macs_ratio_sum") == pytest.approx((SMALL + FULL / 2) / FULL)


def test_any_image_that_classify_takes_and_any_order_of_outputs(client: TestClient) -> None:
    photo = encode(gradient(400, 300), "JPEG")
    wanted = [{"name": "size_px", "parameters": {"binary_data": True}}, {"name": "logits"}]
    response = post(client, photo, plain(2), shape=[2, 1], outputs=wanted, id="p")
    found = outputs(response)
    assert list(found) == ["size_px", "logits"]
    assert found["logits"][1].argmax() == 2
    assert json.loads(response.content[: int(response.headers[LENGTH])])["id"] == "p"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": [3]}, "encoded_images: shape [3] has 3 elements, but 2 came"),
        ({"shape": [1]}, "encoded_images: shape [1] has 1 elements, but more came"),
        ({"shape": []}, "encoded_images: shape [] isn't [images]"),
        ({"shape": [1, 2]}, "encoded_images: shape [1, 2] isn't [images]"),
        ({"shape": [0]}, "encoded_images: there are none"),
        ({"binary": led_by_length([DOUBTFUL, CERTAIN])[:-1]}, "encoded_images: element 1 is cut short"),
        ({"binary": led_by_length([DOUBTFUL, CERTAIN]) + b"\0\0"}, "element 2 is cut short"),
        ({"binary": b""}, "has 2 elements, but 0 came"),
        ({"outputs": [{"name": "kept"}]}, "kept: with encoded_images each image may end at another input size"),
        ({"outputs": [{"name": "scores"}]}, "unknown output 'scores'; there are logits, kept, macs_ratio, size_px"),
        (
            {"parameters": {"threshold": 1.5}},
            "parameters.threshold: 1.5 is refused: Input should be less than or equal",
        ),
        ({"parameters": {"threshold": True}}, "parameters.threshold: True is refused: Input should be a valid number"),
        ({"parameters": {"compute": "half"}}, "parameters.compute: half is refused"),
        ({"parameters": {"preset": "cheap"}}, "parameters.preset: cheap is refused: Input should be 'full'"),
        ({"parameters": {"size": 14.5}}, "parameters.size: 14.5 is refused: Input should be a valid integer"),
        ({"parameters": {"degrade": 1}}, "parameters.degrade: 1 is refused: Input should be a valid boolean"),
        ({"parameters": {"model": "fake"}}, "unknown parameter 'model'; known are threshold, compute, preset, sure"),
        ({"parameters": {"timeout": -1}}, "parameters.timeout: -1 isn't"),
    ],
)
def test_what_isnt_taken_is_400_and_named(
    client: TestClient, engine: FakeEngine, changes: dict[str, Any], said: str
) -> None:
    response = post(client, DOUBTFUL, CERTAIN, **changes)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]
    assert not engine.batches
    assert value(client, 'skipvit_requests_total{model="fake",outcome="invalid"}') == 1


@pytest.mark.parametrize(
    ("images", "parameters", "status", "said"),
    [
        ([b"no image at all"], {}, 415, "JPEG, PNG or WebP"),
        ([DOUBTFUL, DOUBTFUL[:50]], {}, 422, "image 1: "),
        ([b""], {}, 422, "empty"),
        ([bytes(100_001)], {}, 413, "100000"),
        ([DOUBTFUL] * 5, {}, 413, "encoded_images: 5 in one request; the limit is 4"),
        ([DOUBTFUL], {"preset": "full", "threshold": 0.5}, 422, "threshold and preset exclude each other"),
        ([DOUBTFUL], {"size": 15}, 422, "size: 15 is not one of 28, 14"),
        ([DOUBTFUL], {"again": 28}, 422, "say with sure"),
    ],
)
def test_what_classify_refuses_is_refused_alike(
    client: TestClient, engine: FakeEngine, images: list[bytes], parameters: dict[str, Any], status: int, said: str
) -> None:
    response = post(client, *images, parameters=parameters)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]
    assert not engine.batches


def test_they_come_alone_and_as_binary_data(client: TestClient) -> None:
    encoded = {"name": "encoded_images", "datatype": "BYTES", "shape": [1]}
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28, 3], "data": pixels(3).ravel().tolist()}
    threshold = {"name": "threshold", "datatype": "FP32", "shape": [1], "data": [0.5]}
    for inputs, said in (
        ([{**encoded, "data": ["abc"]}], "BYTES are taken as binary data alone (binary_data_size), not in JSON"),
        ([tensor, {**encoded, "data": ["abc"]}], "encoded_images comes alone, without images"),
        ([{**encoded, "data": ["abc"]}, threshold], "encoded_images comes alone, without threshold"),
    ):
        response = client.post(URL, json={"inputs": inputs})
        assert response.status_code == 400
        assert said in response.json()["error"]


def test_under_load_less_is_computed_and_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = client.app_state["serving"].model().batcher
    submit = batcher.submit_many

    def no_second_look(*given: Any, since_s: float | None = None, **more: Any) -> Any:
        if since_s is not None:
            raise Overloaded("too much", retry_after_s=1.0)
        return submit(*given, since_s=since_s, **more)

    monkeypatch.setattr(batcher, "submit_many", no_second_look)
    asked = {"size": 14, "threshold": 0, "sure": 0.96}
    response = post(client, DOUBTFUL, parameters=asked)
    assert outputs(response)["size_px"].tolist() == [14]
    assert response.json()["parameters"] == {"degraded": True}
    assert post(client, DOUBTFUL, parameters={**asked, "degrade": False}).status_code == 429


def in_bytes(*images: bytes) -> NDArray[np.object_]:
    return np.array(images, dtype=np.object_)


def use(triton: Any, kind: Any) -> None:
    """As a user of Triton's library has it; the same over HTTP and gRPC."""
    tensor = kind.InferInput("encoded_images", [2], "BYTES")
    tensor.set_data_from_numpy(in_bytes(DOUBTFUL, CERTAIN))
    found = triton.infer("fake", [tensor], parameters={"preset": "full"})
    assert found.as_numpy("logits").argmax(axis=1).tolist() == [3, 3]
    assert found.as_numpy("size_px").tolist() == [28, 28]
    assert found.as_numpy("macs_ratio").tolist() == [1, 1]
    chosen = [kind.InferRequestedOutput("size_px")]
    again = {"size": 14, "threshold": 0, "sure": 1}
    assert triton.infer("fake", [tensor], outputs=chosen, parameters=again).as_numpy("size_px").tolist() == [28, 28]


async def test_tritonclient_sends_them_over_http() -> None:
    def over_http(port: int) -> None:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            use(triton, tritonclient.http)

    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        await asyncio.to_thread(over_http, live.port)


async def test_tritonclient_sends_them_over_grpc() -> None:
    def over_grpc(port: int) -> None:
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            use(triton, tritonclient.grpc)

    async with rpc_server(FakeEngine()) as live:
        await asyncio.to_thread(over_grpc, grpc_port(live))


def rpc_request(*images: bytes, typed: bool, **parameters: Any) -> Any:
    made = MESSAGES["ModelInferRequest"](
        model_name="fake", parameters={name: parameter(each) for name, each in parameters.items()}
    )
    tensor = made.inputs.add(name="encoded_images", datatype="BYTES", shape=[len(images)])
    if typed:
        tensor.contents.bytes_contents.extend(images)
    else:
        made.raw_input_contents.append(led_by_length(images))
    return made


@pytest.mark.parametrize("typed", [False, True])
async def test_raw_and_typed_ones_are_the_same_over_grpc(typed: bool) -> None:
    async with rpc_server(FakeEngine()) as live, channel(live) as open_channel:
        infer = rpc(open_channel, "ModelInfer")
        bought = [solve(fake_manifest(), 0.5).size_px] * 2
        twice: dict[str, Any] = {"size": 14, "threshold": "0", "sure": "0.96"}
        for spent, sizes_px in (({"compute": 0.5}, bought), ({"compute": "0.5"}, bought), (twice, [28, 14])):
            found = rpc_outputs(await infer(rpc_request(DOUBTFUL, CERTAIN, typed=typed, **spent)))
            assert found["logits"].argmax(axis=1).tolist() == [3, 3]
            assert found["size_px"].tolist() == sizes_px
        error = await failure(infer(rpc_request(b"nothing", typed=typed)))
        assert error.code().name == "INVALID_ARGUMENT"
        assert "JPEG, PNG or WebP" in (error.details() or "")


async def test_they_share_batches_with_tensors_and_forms() -> None:
    engine = FakeEngine()

    async def infer(port: int, inputs: list[Any]) -> Any:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            return await asyncio.to_thread(triton.infer, "fake", inputs)

    async with live_server(engine, Settings(drain_delay_s=0, default_preset="full")) as live:
        encoded = tritonclient.http.InferInput("encoded_images", [2], "BYTES")
        encoded.set_data_from_numpy(in_bytes(plain(1), plain(2)))
        engine.hold()
        first = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(0)))
        await held(engine)
        second = asyncio.create_task(infer(live.port, [encoded]))
        while await metric(live.port, "skipvit_pending_requests ") < 3:
            pass
        third = asyncio.create_task(infer(live.port, triton_inputs(pixels(3), None, True)))
        while await metric(live.port, "skipvit_pending_requests ") < 4:
            pass
        engine.release()
        assert (await first)[0] == 200
        assert (await second).as_numpy("logits").argmax(axis=1).tolist() == [1, 2]
        assert (await third).as_numpy("logits").argmax(axis=1).tolist() == [3]
    assert engine.batches == [[0], [1, 2, 3]]


def test_cached_answers_say_so() -> None:
    settings = Settings(cache_bytes=10_000_000)
    with TestClient(create_app(settings, bundle=fake_bundle(), engine=FakeEngine())) as client:
        said = [post(client, plain(7), plain(8)), post(client, plain(7), plain(9)), post(client, plain(7), plain(8))]
    assert [answer.json().get("parameters") for answer in said] == [None, None, {"cached": True}]
