from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from starlette.testclient import TestClient

from service.app import create_app
from service.oip import EXTENSIONS
from service.settings import Settings
from tests.fakes import CLASSES, LAYERS, FakeEngine, fake_bundle
from tests.images import plain
from tests.service.live import ask, live_server, send
from tests.service.test_live import held, metric
from tests.service.test_ops import value

URL = "/v2/models/fake/infer"
LENGTH = "Inference-Header-Content-Length"


class Response(Protocol):
    """What the test client gives, whichever of its HTTP libraries is installed."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> bytes: ...
    @property
    def text(self) -> str: ...
    def json(self) -> Any: ...


def pixels(*values: int, size_px: int = 28) -> NDArray[np.uint8]:
    """One grey image for each value, as `plain` encodes them."""
    return np.stack([np.full((size_px, size_px, 3), each, np.uint8) for each in values])


def in_json(images: NDArray[np.uint8], **more: Any) -> dict[str, Any]:
    shape = list(images.shape)
    return {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": shape, "data": images.ravel().tolist()}],
        **more,
    }


def in_binary(
    client: TestClient, images: NDArray[np.uint8], threshold: NDArray[np.float32] | None = None, **more: Any
) -> Response:
    inputs = [("images", "UINT8", images)] + ([("threshold", "FP32", threshold)] if threshold is not None else [])
    document = {
        "inputs": [
            {"name": n, "datatype": t, "shape": list(a.shape), "parameters": {"binary_data_size": a.nbytes}}
            for n, t, a in inputs
        ],
        **more,
    }
    head = json.dumps(document).encode()
    return client.post(
        URL, content=head + b"".join(a.tobytes() for _, _, a in inputs), headers={LENGTH: str(len(head))}
    )


def outputs(response: Response) -> dict[str, NDArray[Any]]:
    """The outputs as arrays, however they came."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    content = response.content
    document = json.loads(content if length is None else content[: int(length)])
    rest = b"" if length is None else content[int(length) :]
    found = {}
    for output in document["outputs"]:
        dtype = {"FP32": np.float32, "BOOL": np.bool_, "INT32": np.int32}[output["datatype"]]
        if "data" in output:
            array: NDArray[Any] = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            array, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        found[output["name"]] = array.reshape(output["shape"])
    assert not rest
    return found


def skipped(response: Response) -> list[int]:
    """Patches that the last layer skipped, of each image."""
    return [int(count) for count in (~outputs(response)["kept"][:, -1]).sum(axis=1)]


def test_the_server_and_the_model_describe_themselves(client: TestClient) -> None:
    server = client.get("/v2").json()
    assert server["name"] == "skipvit"
    assert server["version"]
    assert server["extensions"] == EXTENSIONS
    expected = {
        "name": "fake",
        "versions": ["1.0.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": "threshold", "datatype": "FP32", "shape": [-1], "optional": True},
            {"name": "encoded_images", "datatype": "BYTES", "shape": [-1], "optional": True},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]},
            {"name": "kept", "datatype": "BOOL", "shape": [-1, LAYERS, -1]},
            {"name": "macs_ratio", "datatype": "FP32", "shape": [-1]},
            {"name": "size_px", "datatype": "INT32", "shape": [-1]},
        ],
    }
    assert client.get("/v2/models/fake").json() == expected
    assert client.get("/v2/models/fake/versions/1.0.0").json() == expected


def test_a_started_server_is_live_and_ready(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/fake/ready", "/v2/models/fake/versions/1.0.0/ready"):
        assert client.get(path).json() == {"name": "fake", "ready": True}


def test_draining_fails_readiness_but_not_liveness_nor_inference(client: TestClient) -> None:
    client.app.state.lifecycle.begin_drain()  # type: ignore[attr-defined]
    for path in ("/v2/health/ready", "/v2/models/fake/ready", "/v2/models/fake/versions/1.0.0/ready"):
        response = client.get(path)
        assert response.status_code == 503
        assert response.json() == {"error": "the service is draining"}
        assert response.headers["Retry-After"] == "1"
    assert client.get("/v2/health/live").status_code == 200
    assert client.post(URL, json=in_json(pixels(3))).status_code == 200


def test_before_its_lifespan_nothing_is_ready() -> None:
    client = TestClient(create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine()))
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake"):
        assert client.get(path).status_code == 503
        assert client.get(path).json() == {"error": "the service is starting"}


def test_json_in_and_out(client: TestClient) -> None:
    response = client.post(URL, json=in_json(pixels(3, 1), id="a-1", parameters={"threshold": 0.25}))
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    answer = response.json()
    assert {name: answer[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "fake",
        "model_version": "1.0.0",
        "id": "a-1",
    }
    logits, kept = answer["outputs"]
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [2, CLASSES])
    assert (kept["name"], kept["datatype"], kept["shape"]) == ("kept", "BOOL", [2, LAYERS, 16])
    assert set(kept["data"]) == {True, False}
    assert outputs(response)["logits"].argmax(axis=1).tolist() == [3, 1]
    assert skipped(response) == [4, 4]
    assert "dur=" in response.headers["Server-Timing"]


def test_nested_json_is_the_same_as_flat(client: TestClient) -> None:
    images = pixels(2, size_px=14)
    images[0, 0, 0, 0] = 3
    request = in_json(images)
    flat = client.post(URL, json=request).json()
    request["inputs"][0]["data"] = images.tolist()
    assert client.post(URL, json=request).json() == flat


def test_without_an_id_there_is_none(client: TestClient) -> None:
    assert "id" not in client.post(URL, json=in_json(pixels(3))).json()


def test_a_version_can_be_named(client: TestClient) -> None:
    url = "/v2/models/fake/versions/1.0.0/infer"
    assert client.post(url, json=in_json(pixels(3))).json() == client.post(URL, json=in_json(pixels(3))).json()


def test_binary_in_json_out(client: TestClient) -> None:
    response = in_binary(client, pixels(3, 2), parameters={"threshold": 0.5})
    assert response.headers["content-type"] == "application/json"
    assert outputs(response)["logits"].argmax(axis=1).tolist() == [3, 2]
    assert skipped(response) == [8, 8]


@pytest.mark.parametrize("size_px", [28, 14])
def test_binary_in_and_out_equals_json(client: TestClient, size_px: int) -> None:
    images = pixels(3, 2, size_px=size_px)
    response = in_binary(client, images, parameters={"binary_data_output": True})
    assert response.headers["content-type"] == "application/octet-stream"
    for name, array in outputs(client.post(URL, json=in_json(images))).items():
        assert np.array_equal(outputs(response)[name], array)


def test_outputs_are_chosen_ordered_and_each_sent_its_own_way(client: TestClient) -> None:
    wanted = [{"name": "kept", "parameters": {"binary_data": True}}, {"name": "logits"}]
    response = client.post(URL, json=in_json(pixels(3), outputs=wanted))
    assert list(outputs(response)) == ["kept", "logits"]
    document = json.loads(response.content[: int(response.headers[LENGTH])])
    assert document["outputs"][0]["parameters"] == {"binary_data_size": LAYERS * 16}
    assert "data" not in document["outputs"][0]
    assert "data" in document["outputs"][1]
    only = [{"name": "logits", "parameters": {"binary_data": False}}]
    response = client.post(URL, json=in_json(pixels(3), outputs=only, parameters={"binary_data_output": True}))
    assert list(outputs(response)) == ["logits"]
    assert LENGTH not in response.headers


def test_what_each_image_cost_and_its_size_are_outputs_too(client: TestClient) -> None:
    wanted = [{"name": "size_px"}, {"name": "macs_ratio"}]
    threshold = np.array([0.5, 0], np.float32)
    found = outputs(in_binary(client, pixels(3, 2), threshold, outputs=wanted))
    assert found["size_px"].tolist() == [28, 28]
    assert found["macs_ratio"].tolist() == pytest.approx([37500 / 53500, 1])


def test_the_default_presets_threshold_is_used_unless_one_is_given(client: TestClient) -> None:
    assert skipped(client.post(URL, json=in_json(pixels(3)))) == [8]
    assert skipped(client.post(URL, json=in_json(pixels(3, size_px=14)))) == [2]
    assert skipped(client.post(URL, json=in_json(pixels(3), parameters={"threshold": 0}))) == [0]
    assert skipped(client.post(URL, json=in_json(pixels(3), parameters={"threshold": 1.0}))) == [16]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_each_row_may_have_its_own_threshold(client: TestClient, engine: FakeEngine, shape: tuple[int, ...]) -> None:
    threshold = np.array([0, 0.5, 0.25], np.float32).reshape(shape)
    response = in_binary(client, pixels(3, 2, 1), threshold)
    assert skipped(response) == [0, 8, 4]
    assert outputs(response)["logits"].argmax(axis=1).tolist() == [3, 2, 1]
    assert engine.batches == [[3, 2, 1]]
    request = in_json(pixels(3, 2, 1))
    request["inputs"].append(
        {"name": "threshold", "datatype": "FP32", "shape": list(shape), "data": threshold.tolist()}
    )
    assert skipped(client.post(URL, json=request)) == [0, 8, 4]


@pytest.mark.parametrize("grey", [0, 65, 130, 255])
def test_classify_gives_the_same_answer_for_the_same_pixels(client: TestClient, grey: int) -> None:
    (result,) = client.post("/v1/classify?threshold=0.5&explain=mask", content=plain(grey)).json()["results"]
    found = outputs(in_binary(client, pixels(grey), parameters={"threshold": 0.5}))
    assert found["logits"][0].argmax() == result["predictions"][0]["index"]
    assert found["kept"][0].astype(int).tolist() == result["mask"]


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_inflated_within_the_limit(
    client: TestClient, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    headers = {"content-encoding": encoding}
    body = json.dumps(in_json(pixels(3))).encode()

    def post(content: bytes) -> Response:
        return client.post(URL, content=content, headers=headers)

    assert outputs(post(compress(body)))["logits"].argmax() == 3
    assert post(compress(bytes(300_001))).status_code == 413
    for broken, said in (
        (body, "isn't"),
        (compress(body)[:-1], "cut short"),
        (compress(body) + b"x", "follow the end"),
    ):
        response = post(broken)
        assert response.status_code == 400
        assert said in response.json()["error"]


async def test_while_few_bytes_are_inflated_to_many_others_are_answered() -> None:
    body = zlib.compress(bytes(60 << 20), 9)
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Encoding: deflate\r\n{LENGTH}: 5\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        refused, probes = asyncio.create_task(reader.readuntil(b"\r\n\r\n")), 0
        while not refused.done():
            assert (await ask(live.port, "GET", "/healthz"))[0] == 200
            probes += 1
        assert (await refused).startswith(b"HTTP/1.1 400")
        assert probes > 3
        writer.close()


@pytest.mark.parametrize("inner", ["[]", "[[[[]]]]", "{}"])
def test_json_of_more_lists_than_images_need_is_413_before_it_is_parsed(inner: str) -> None:
    data = ",".join([inner] * 100_000)
    text = '{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1], "data": [' + data + "]}]}"
    settings = Settings(max_image_pixels=89_000_000)
    with TestClient(create_app(settings, bundle=fake_bundle(), engine=FakeEngine())) as client:
        response = client.post(URL, content=gzip.compress(text.encode()), headers={"content-encoding": "gzip"})
    assert response.status_code == 413
    assert "lists" in response.json()["error"] or "JSON" in response.json()["error"]


def test_mixed_thresholds_are_planned_as_the_work_they_are() -> None:
    engine = FakeEngine()
    with TestClient(create_app(Settings(adaptive=False), bundle=fake_bundle(), engine=engine)) as client:
        model = client.app_state["serving"].models["fake"]
        for rows in range(1, 30):  # a second for each image at threshold 0
            ones = np.ones((rows, LAYERS, 16), np.bool_)
            model.cost.learn(28, np.zeros(rows, np.float32), ones, rows * 1.0)
        mixed = np.array([0.0] + [1.0] * 15, np.float32)
        needed_s = model.cost.seconds(sum(model.cost.macs(28, float(threshold)) for threshold in mixed))
        assert needed_s < 0.7 * 16  # and 16 s, were all of them at threshold 0
        answer = in_binary(client, pixels(*[1] * 16), mixed, parameters={"timeout": int(1.3e6 * needed_s)})
    assert answer.status_code == 200


FLAT = pixels(3).ravel().tolist()
IMAGES = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28, 3], "data": FLAT}


def changed(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**IMAGES, **changes}]}


def with_threshold(**changes: Any) -> dict[str, Any]:
    threshold = {"name": "threshold", "datatype": "FP32", "shape": [1], "data": [0.5]}
    return {"inputs": [IMAGES, {**threshold, **changes}]}


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"inputs": [IMAGES], "parameters": parameters}


def with_outputs(*requested: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": [IMAGES], "outputs": list(requested)}


@pytest.mark.parametrize(
    ("request_body", "said"),
    [
        ({}, "inputs: Field required"),
        (changed(name="image"), "unknown input 'image'; there are images, threshold, encoded_images"),
        ({"inputs": [IMAGES, IMAGES]}, "'images' is there more than once"),
        ({"inputs": [{**IMAGES, "name": "threshold", "datatype": "FP32"}]}, "the input 'images' is missing"),
        (changed(datatype="FP32"), "images: the datatype is UINT8, not 'FP32'"),
        (changed(shape=[1, 3, 28, 28]), "isn't [images, size, size, 3], channels last"),
        (changed(shape=[28, 28, 3]), "isn't [images, size, size, 3]"),
        (changed(shape=[1, 28, 14, 3]), "isn't [images, size, size, 3]"),
        (changed(shape=[1, 15, 15, 3]), "images: 15 px isn't one of the model's input sizes, 28, 14"),
        (changed(shape=[0, 28, 28, 3], data=[]), "images: there are none"),
        (changed(data=FLAT[:-1]), "the data have shape [2351]"),
        (changed(data=[256, *FLAT[1:]]), "outside what UINT8 can hold"),
        (changed(data=None), "give one of data and parameters.binary_data_size"),
        (changed(data=None, parameters={"binary_data_size": 2352}), "2352 bytes announced, 0 came"),
        (with_threshold(datatype="FP64"), "threshold: the datatype is FP32, not 'FP64'"),
        (with_threshold(shape=[2], data=[0.5, 0.5]), "threshold: shape [2] isn't [1], one for each image"),
        (with_threshold(shape=[1, 2], data=[0.5, 0.5]), "threshold: shape [1, 2] isn't [1]"),
        (with_threshold(data=[1.5]), "threshold: 1.5 (image 0) isn't from 0 to 1"),
        (with_threshold(data=[-0.5]), "threshold: -0.5 (image 0) isn't from 0 to 1"),
        ({**with_threshold(), "parameters": {"threshold": 0.5}}, "not both"),
        (with_parameters(threshold=1.5), "parameters.threshold: 1.5 isn't a number from 0 to 1"),
        (with_parameters(threshold=True), "parameters.threshold: True isn't"),
        (with_parameters(threshold="0.5"), "parameters.threshold: 0.5 isn't a number"),
        (with_parameters(treshold=0.5), "unknown parameter 'treshold'; known are threshold"),
        (with_parameters(preset="full"), "parameters.preset: a tensor comes at one size; send encoded_images"),
        (with_parameters(timeout=-1), "parameters.timeout: -1 isn't"),
        (with_parameters(timeout=1.5), "parameters.timeout: 1.5 isn't"),
        (with_parameters(timeout=600_000_001), "parameters.timeout: 600000001 isn't"),
        (with_parameters(binary_data_output=1), "parameters.binary_data_output: 1 isn't true or false"),
        (with_outputs({"name": "scores"}), "unknown output 'scores'; there are logits, kept, macs_ratio, size_px"),
        (with_outputs({"name": "kept"}, {"name": "kept"}), "'kept' is there more than once"),
        (with_outputs({"name": "kept", "parameters": {"binary_data": "yes"}}), "binary_data: yes isn't true or false"),
        (with_outputs({"name": "logits", "parameters": {"classification": 3}}), "'classification' isn't supported"),
    ],
)
def test_what_the_model_doesnt_take_is_400_and_named(
    client: TestClient, engine: FakeEngine, request_body: dict[str, Any], said: str
) -> None:
    response = client.post(URL, json=request_body)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert said in response.json()["error"]
    assert not engine.batches
    assert value(client, 'skipvit_requests_total{model="fake",outcome="invalid"}') == 1


def test_nan_as_a_threshold_is_400(client: TestClient) -> None:
    response = in_binary(client, pixels(3), np.array([np.nan], np.float32))
    assert response.status_code == 400
    assert "threshold: nan (image 0)" in response.json()["error"]
    text = json.dumps(with_parameters(threshold=float("nan")))  # which JSON doesn't have
    assert client.post(URL, content=text).status_code == 400


def test_parameters_that_other_servers_know_pass(client: TestClient) -> None:
    request = with_parameters(priority=1, sequence_id=7, sequence_start=True, triton_flag=1, timeout=0)
    assert client.post(URL, json=request).status_code == 200


def test_a_raw_body_without_json_is_refused(client: TestClient) -> None:
    response = client.post(URL, content=pixels(3).tobytes(), headers={LENGTH: "0"})
    assert response.status_code == 400
    assert LENGTH in response.json()["error"]


def test_too_many_bytes_or_images_are_413(client: TestClient, engine: FakeEngine) -> None:
    assert in_binary(client, pixels(1, 2, 3, 0)).status_code == 200
    response = in_binary(client, pixels(1, 2, 3, 0, 1))
    assert response.status_code == 413
    assert response.json() == {"error": "images: 5 in one request; the limit is 4"}
    assert client.post(URL, content=bytes(300_001)).status_code == 413
    assert client.post(URL, content=iter([bytes(200_000)] * 2)).status_code == 413  # no content-length
    response = client.post(URL, content=b" " * 200_000)
    assert response.status_code == 413
    assert "limit is 140800 (for JSON; send tensors as binary data)" in response.json()["error"]
    assert engine.batches == [[1, 2, 3, 0]]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/fake/versions/2", "/v2/models/other/versions/1.0.0"])
def test_a_model_or_version_that_isnt_served_is_404(client: TestClient, path: str) -> None:
    for method, url in (("GET", path), ("GET", f"{path}/ready"), ("POST", f"{path}/infer")):
        response = client.request(method, url)
        assert response.status_code == 404
        assert "other" in response.json()["error"] or "no version '2'" in response.json()["error"]
    assert value(client, 'skipvit_requests_total{model="unknown",outcome="invalid"}') == 1  # only infer counts
    assert value(client, "skipvit_request_duration_seconds_count") == 1


def test_what_the_framework_refuses_has_the_protocols_body_too(client: TestClient) -> None:
    for method, path, status in (("GET", "/v2/nothing", 404), ("GET", URL, 405), ("POST", "/v2", 405)):
        response = client.request(method, path)
        assert response.status_code == status
        assert list(response.json()) == ["error"]
    assert client.get("/v2nothing").headers["content-type"] == "application/problem+json"


def test_an_unforeseen_error_has_the_protocols_body_and_tells_nothing() -> None:
    app = create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())

    @app.get("/v2/fail")
    async def fail() -> None:
        raise RuntimeError("a secret")

    with TestClient(app) as client:
        response = client.get("/v2/fail")
    assert response.status_code == 500
    assert response.json() == {"error": "an unexpected error; it was logged"}


def test_an_image_the_engine_fails_on_is_500_and_harms_nobody(client: TestClient) -> None:
    response = in_binary(client, pixels(1, 66))
    assert response.status_code == 500
    assert "inference failed" in response.json()["error"]
    assert in_binary(client, pixels(1, 65)).status_code == 200
    assert value(client, 'skipvit_requests_total{model="fake",outcome="error"}') == 1


def test_an_answer_is_recorded_as_classifys_is(client: TestClient) -> None:
    in_binary(client, pixels(3, 2), np.array([0.5, 0], np.float32))
    assert value(client, 'skipvit_requests_total{model="fake",outcome="ok"}') == 1
    assert value(client, 'skipvit_patches_total{layer="2",model="fake"}') == 32
    assert value(client, 'skipvit_skipped_patches_total{layer="2",model="fake"}') == 8
    assert value(client, "skipvit_skipped_patches_sum") == 4  # the mean of 8 and 0
    assert value(client, "skipvit_effective_threshold_sum") == 0.25
    assert value(client, "skipvit_macs_ratio_sum") == pytest.approx((37500 / 53500 + 1) / 2)
    assert value(client, "skipvit_batch_size_sum") == 2
    for histogram in ("request", "decode", "queue", "inference"):
        assert value(client, f"skipvit_{histogram}_duration_seconds_count") == 1


def test_probes_and_metadata_are_not_counted(client: TestClient) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/fake", "/v2/models/fake/ready"):
        assert client.get(path).status_code == 200
    assert value(client, "skipvit_request_duration_seconds_count") == 0


def test_the_openapi_document_shows_the_protocol(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        assert set(paths[path]["post"]["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
        assert set(paths[path]["post"]["responses"]) == {"200", "4XX", "5XX"}


def test_tritons_configuration_says_what_the_metadata_say(client: TestClient) -> None:
    config = client.get("/v2/models/fake/config").json()
    assert config["max_batch_size"] == 0
    metadata = client.get("/v2/models/fake").json()
    for ours, theirs in (("inputs", "input"), ("outputs", "output")):
        kinds = {"BYTES": "STRING"}
        assert [
            (t["name"], f"TYPE_{kinds.get(t['datatype'], t['datatype'])}", t["shape"], t.get("optional"))
            for t in metadata[ours]
        ] == [(t["name"], t["data_type"], t["dims"], t.get("optional")) for t in config[theirs]]
    assert client.get("/v2/models/fake/versions/2/config").status_code == 404


@pytest.mark.parametrize("binary", [False, True])
def test_what_kserves_client_sends_is_understood(client: TestClient, binary: bool) -> None:
    """Requests as `kserve` 0.21 was seen to send them with `InferenceRESTClient`, protocol v2, both ways."""
    images = pixels(3, 2)
    tensor: dict[str, Any] = {"name": "images", "shape": list(images.shape), "datatype": "UINT8"}
    head = {"id": "48ec85a6-ec50-43f4-a96c-cbb79c590907", "model_name": "fake", "parameters": {"threshold": 0.5}}
    if binary:
        tensor["parameters"] = {"binary_data_size": images.nbytes}
        wanted = [{"name": "logits", "parameters": {"binary_data": True}}]
        text = json.dumps({**head, "inputs": [tensor], "outputs": wanted}, separators=(",", ":")).encode()
        headers = {LENGTH.lower(): str(len(text)), "content-type": "application/octet-stream"}
        response = client.post(URL, content=text + images.tobytes(), headers=headers)
    else:
        tensor["data"] = images.ravel().tolist()
        response = client.post(URL, json={**head, "inputs": [tensor]})
    assert outputs(response)["logits"].argmax(axis=1).tolist() == [3, 2]
    text = response.content[: int(response.headers[LENGTH])] if binary else response.content
    assert json.loads(text)["id"] == head["id"]


def triton_inputs(images: NDArray[np.uint8], threshold: NDArray[np.float32] | None, binary: bool) -> list[Any]:
    inputs = []
    for name, datatype, array in (("images", "UINT8", images), ("threshold", "FP32", threshold)):
        if array is not None:
            inputs.append(tritonclient.http.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


async def test_tritonclient_works_unchanged() -> None:
    def use(port: int) -> None:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            assert triton.is_server_live()
            assert triton.is_server_ready()
            assert triton.is_model_ready("fake")
            assert triton.is_model_ready("fake", "1.0.0")
            assert not triton.is_model_ready("other")
            assert triton.get_server_metadata()["extensions"] == EXTENSIONS
            assert triton.get_model_metadata("fake")["outputs"][1]["name"] == "kept"
            assert triton.get_model_config("fake", "1.0.0") == triton.get_model_config("fake")
            threshold = np.array([0, 0.5], np.float32)
            for binary in (True, False):
                inputs = triton_inputs(pixels(3, 2), threshold, binary)
                chosen = [tritonclient.http.InferRequestedOutput(n, binary_data=binary) for n in ("kept", "logits")]
                for wanted, compression in ((None, None), (chosen, None), (chosen, "gzip"), (chosen, "deflate")):
                    found = triton.infer(
                        "fake", inputs, outputs=wanted, request_id="r", request_compression_algorithm=compression
                    )
                    assert found.get_response()["id"] == "r"
                    assert found.as_numpy("logits").argmax(axis=1).tolist() == [3, 2]
                    assert found.as_numpy("kept").dtype == np.bool_
                    assert (~found.as_numpy("kept")[:, -1]).sum(axis=1).tolist() == [0, 8]
            inputs = triton_inputs(pixels(3), None, True)
            found = triton.infer("fake", inputs, "1.0.0", timeout=10_000_000, parameters={"threshold": 0.25})
            assert (~found.as_numpy("kept")[:, -1]).sum(axis=1).tolist() == [4]
            found = triton.async_infer("fake", inputs, response_compression_algorithm="gzip").get_result()
            assert found.as_numpy("logits").shape == (1, CLASSES)
            with pytest.raises(tritonclient.http.InferenceServerException, match="15 px isn't one of"):
                triton.infer("fake", triton_inputs(pixels(3, size_px=15), None, True))
            with pytest.raises(tritonclient.http.InferenceServerException, match="no model 'other'"):
                triton.infer("other", inputs)

    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        await asyncio.to_thread(use, live.port)


async def test_requests_of_both_kinds_share_a_batch() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(drain_delay_s=0)) as live:
        client = tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{live.port}")
        engine.hold()
        first = asyncio.create_task(client.infer("fake", triton_inputs(pixels(0), None, True)))
        await held(engine)
        second = asyncio.create_task(client.infer("fake", triton_inputs(pixels(1, 2), None, True)))
        while await metric(live.port, "skipvit_pending_requests ") < 3:
            pass
        third = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(3)))
        while await metric(live.port, "skipvit_pending_requests ") < 4:
            pass
        engine.release()
        await first
        assert (await second).as_numpy("logits").argmax(axis=1).tolist() == [1, 2]
        assert (await third)[0] == 200
        await client.close()
    assert engine.batches == [[0], [1, 2, 3]]


async def test_the_timeout_parameter_is_a_deadline_in_microseconds() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(drain_delay_s=0)) as live:
        engine.hold()
        body = json.dumps(in_json(pixels(3), parameters={"timeout": 50_000})).encode()
        status, content = await ask(live.port, "POST", URL, body)
        assert status == 504
        assert list(json.loads(content)) == ["error"]
        engine.release()
        assert await metric(live.port, 'skipvit_requests_total{model="fake",outcome="timeout"}') == 1


async def test_a_full_queue_is_429() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(max_pending_images=2, drain_delay_s=0)) as live:
        engine.hold()
        running = asyncio.create_task(ask(live.port, "POST", URL, json.dumps(in_json(pixels(1))).encode()))
        await held(engine)
        waiting = asyncio.create_task(ask(live.port, "POST", URL, json.dumps(in_json(pixels(1))).encode()))
        while await metric(live.port, "skipvit_pending_requests ") < 2:
            pass
        status, content = await ask(live.port, "POST", URL, json.dumps(in_json(pixels(2, 3))).encode())
        assert status == 429
        assert "the queue is full" in json.loads(content)["error"]
        engine.release()
        assert [(await running)[0], (await waiting)[0]] == [200, 200]


async def test_a_client_that_leaves_takes_its_images_out_of_the_queue() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(max_batch_size=1, drain_delay_s=0)) as live:
        engine.hold()
        first = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(1)))
        await held(engine)
        _, writer = await send(live.port, "POST", URL, json.dumps(in_json(pixels(2, 3))).encode())
        while await metric(live.port, "skipvit_pending_requests ") < 3:
            pass
        writer.close()
        await writer.wait_closed()
        while await metric(live.port, 'skipvit_requests_total{model="fake",outcome="cancelled"}') < 1:
            pass
        engine.release()
        assert (await first)[0] == 200
    assert engine.batches == [[1]]
