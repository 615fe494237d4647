"""The Open Inference Protocol over gRPC, with the library that Triton's users have and with messages of our own."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from grpc import StatusCode as Code
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from tritonclient.grpc import service_pb2 as triton_messages

from service.api_keys import make_key
from service.app import create_app
from service.errors import SettingsError
from service.rpc import check_extra
from service.rpc.gateway import Gateway
from service.rpc.messages import HEALTH, MESSAGES
from service.rpc.server import SERVICE
from service.settings import Settings
from tests.fakes import CLASSES, FakeEngine, FakeLoader, fake_bundle, write_bundle
from tests.images import plain
from tests.service.live import Live, ask, live_app, live_server
from tests.service.test_live import held, metric
from tests.service.test_v2 import pixels


@asynccontextmanager
async def rpc_server(engine: FakeEngine, **changes: Any) -> AsyncIterator[Live]:
    known = {"grpc_port": 0, "drain_delay_s": 0, "max_image_bytes": 100_000, "max_request_bytes": 300_000}
    async with live_server(engine, Settings(**{**known, "max_images_per_request": 4, **changes})) as live:
        yield live


def grpc_port(live: Live) -> int:
    return int(live.app.state.grpc_port)


@asynccontextmanager
async def channel(live: Live) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port(live)}", options=options) as channel:
        yield channel


def rpc(channel: grpc.aio.Channel, name: str, service: str = SERVICE) -> Callable[..., Any]:
    prefix = "HealthCheck" if service != SERVICE else name
    return channel.unary_unary(  # type: ignore[no-any-return]
        f"/{service}/{name}",
        request_serializer=MESSAGES[f"{prefix}Request"].SerializeToString,
        response_deserializer=MESSAGES[f"{prefix}Response"].FromString,
    )


def parameter(value: Any) -> Any:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return MESSAGES["InferParameter"](**{kinds[type(value)]: value})


def request(
    images: NDArray[np.uint8], each: NDArray[np.float32] | None = None, *, typed: bool = False, **parameters: Any
) -> Any:
    """A `ModelInferRequest`, its tensors raw or typed; `each` is a threshold for each image."""
    arrays = [("images", "UINT8", images)] + ([("threshold", "FP32", each)] if each is not None else [])
    fields = {"UINT8": "uint_contents", "FP32": "fp32_contents"}
    made = MESSAGES["ModelInferRequest"](
        model_name="fake", parameters={name: parameter(value) for name, value in parameters.items()}
    )
    for name, datatype, array in arrays:
        tensor = made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, fields[datatype]).extend(array.ravel().tolist())
        else:
            made.raw_input_contents.append(array.tobytes())
    return made


def outputs(response: Any) -> dict[str, NDArray[Any]]:
    dtypes = {"FP32": np.float32, "BOOL": np.bool_, "INT32": np.int32}
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {o.name: np.frombuffer(raw, dtypes[o.datatype]).reshape(o.shape) for o, raw in pairs}


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def test_the_messages_are_the_protocols_on_the_wire() -> None:
    """Against what Triton's client library generated from the protocol's files."""
    pool = triton_messages.DESCRIPTOR.pool
    ours_only = {"RepositoryModelLoadResponse": {1, 2}, "RepositoryModelUnloadResponse": {1, 2}}
    in_part = ("ModelConfig", "ModelInput", "ModelOutput")  # Triton has dozens of fields that say nothing here

    def same(ours: Any, theirs: Any, seen: frozenset[str]) -> None:
        fields = {f.number: f for f in ours.fields if f.number not in ours_only.get(ours.name, ())}
        wanted = [f for f in theirs.fields if f.number in fields or ours.name not in in_part]
        assert set(fields) == {f.number for f in wanted}, ours.name
        for other in wanted:
            field = fields[other.number]
            kind = field.TYPE_INT32 if other.type == other.TYPE_ENUM else other.type
            assert (field.name, field.type, field.is_repeated) == (other.name, kind, other.is_repeated)
            assert (field.containing_oneof is None) == (other.containing_oneof is None)
            if other.message_type is not None and other.message_type.full_name not in seen:
                assert field.message_type.GetOptions().map_entry == other.message_type.GetOptions().map_entry
                same(field.message_type, other.message_type, seen | {other.message_type.full_name})

    service = triton_messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    known = [method for method in service.methods if f"{method.name}Request" in MESSAGES]
    assert len(known) == 10
    for method in known:
        for theirs in (method.input_type, method.output_type):
            same(MESSAGES[theirs.name].DESCRIPTOR, pool.FindMessageTypeByName(theirs.full_name), frozenset())


async def test_tritonclient_works_unchanged() -> None:
    def use(port: int) -> None:
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            assert triton.is_server_live()
            assert triton.is_server_ready()
            assert triton.is_model_ready("fake")
            assert triton.is_model_ready("fake", "1.0.0")
            assert not triton.is_model_ready("other")
            assert not triton.is_model_ready("fake", "2")
            metadata = triton.get_server_metadata()
            assert metadata.name == "skipvit"
            assert "model_repository" in metadata.extensions
            model = triton.get_model_metadata("fake")
            assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
                ("images", "UINT8", [-1, -1, -1, 3]),
                ("threshold", "FP32", [-1]),
                ("encoded_images", "BYTES", [-1]),
            ]
            assert model.platform == "onnxruntime_onnx"
            config = triton.get_model_config("fake", as_json=True)["config"]
            assert config["input"][0] == {"name": "images", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "-1", "3"]}
            assert config["input"][1]["optional"]
            images = tritonclient.grpc.InferInput("images", [2, 28, 28, 3], "UINT8")
            images.set_data_from_numpy(pixels(3, 2))
            threshold = tritonclient.grpc.InferInput("threshold", [2], "FP32")
            threshold.set_data_from_numpy(np.array([0, 0.5], np.float32))
            chosen = [tritonclient.grpc.InferRequestedOutput(name) for name in ("kept", "logits")]
            for wanted, compression in ((None, None), (chosen, None), (chosen, "gzip"), (chosen, "deflate")):
                found = triton.infer(
                    "fake", [images, threshold], outputs=wanted, request_id="r", compression_algorithm=compression
                )
                assert found.get_response().id == "r"
                assert found.as_numpy("logits").argmax(axis=1).tolist() == [3, 2]
                assert found.as_numpy("kept").dtype == np.bool_
                assert (~found.as_numpy("kept")[:, -1]).sum(axis=1).tolist() == [0, 8]
            chosen[0]._get_tensor().parameters["binary_data"].bool_param = False  # of REST; here all are binary
            assert triton.infer("fake", [images], outputs=chosen).as_numpy("kept").shape[0] == 2
            only = triton.infer("fake", [images], "1.0.0", outputs=chosen[:1], parameters={"threshold": "0.25"})
            assert (~only.as_numpy("kept")[:, -1]).sum(axis=1).tolist() == [4, 4]
            assert only.as_numpy("logits") is None
            images.set_shape([2, 28, 84, 1])
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="channels last"):
                triton.infer("fake", [images])
            assert {row.name: row.state for row in triton.get_model_repository_index().models}["fake"] == "READY"
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="SKIPVIT_REPOSITORY_CONTROL"):
                triton.load_model("fake")

    async with rpc_server(FakeEngine()) as live:
        await asyncio.to_thread(use, grpc_port(live))


@pytest.mark.parametrize("typed", [False, True])
async def test_raw_and_typed_tensors_give_what_rest_gives(typed: bool) -> None:
    async with rpc_server(FakeEngine()) as live, channel(live) as open_channel:
        infer = rpc(open_channel, "ModelInfer")
        threshold = np.array([0, 0.5, 0.25], np.float32)
        call = infer(request(pixels(3, 2, 1), threshold, typed=typed), metadata=(("x-request-id", "r7"),))
        response = await call
        assert (response.model_name, response.model_version, response.id) == ("fake", "1.0.0", "")
        found = outputs(response)
        assert found["logits"].shape == (3, CLASSES)
        assert found["logits"].argmax(axis=1).tolist() == [3, 2, 1]
        assert (~found["kept"][:, -1]).sum(axis=1).tolist() == [0, 8, 4]
        trailing = dict(await call.trailing_metadata())
        assert trailing["x-request-id"] == "r7"
        assert "inference;dur=" in trailing["server-timing"]
        for value, skipped in ((0.5, 8), ("0.25", 4), (1, 16)):
            found = outputs(await infer(request(pixels(3), typed=typed, threshold=value)))
            assert (~found["kept"][0, -1]).sum() == skipped
        assert await metric(live.port, 'skipvit_requests_total{model="fake",outcome="ok"}') == 4
        assert await metric(live.port, "skipvit_decode_duration_seconds_count") == 4


def wrong(change: Callable[[Any], Any], *, typed: bool = False) -> Any:
    made = request(pixels(3), np.array([0.5], np.float32), typed=typed)
    change(made)
    return made


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        (wrong(lambda m: setattr(m, "model_name", "other")), Code.NOT_FOUND, "no model 'other'"),
        (wrong(lambda m: setattr(m, "model_name", "")), Code.NOT_FOUND, "no model ''"),
        (wrong(lambda m: setattr(m, "model_name", "fake/versions/1.0.0")), Code.NOT_FOUND, "no model 'fake/ver"),
        (wrong(lambda m: setattr(m, "model_version", "9")), Code.NOT_FOUND, "no version '9'"),
        (wrong(lambda m: m.raw_input_contents.pop()), Code.INVALID_ARGUMENT, "raw_input_contents: 1 for 2 inputs"),
        (wrong(lambda m: m.raw_input_contents.append(b"")), Code.INVALID_ARGUMENT, "raw_input_contents: 3 for 2"),
        (
            wrong(lambda m: m.inputs[0].contents.uint_contents.append(1)),
            Code.INVALID_ARGUMENT,
            "one for each, and no contents",
        ),
        (
            wrong(lambda m: m.inputs[0].contents.int_contents.append(1), typed=True),
            Code.INVALID_ARGUMENT,
            "images: UINT8 data belong in uint_contents, not in int_contents",
        ),
        (
            wrong(lambda m: m.inputs[0].contents.uint_contents.__setitem__(0, 256), typed=True),
            Code.INVALID_ARGUMENT,
            "images: a value is outside what UINT8 can hold",
        ),
        (
            wrong(lambda m: m.inputs[0].contents.uint_contents.pop(), typed=True),
            Code.INVALID_ARGUMENT,
            "but shape [1, 28, 28, 3] of UINT8 takes 2352 bytes",
        ),
        (wrong(lambda m: m.inputs[0].shape.__setitem__(0, -1)), Code.INVALID_ARGUMENT, "greater than or equal to 0"),
        (wrong(lambda m: setattr(m.inputs[0], "datatype", "BYTES")), Code.INVALID_ARGUMENT, "the datatype is UINT8"),
        (
            wrong(lambda m: setattr(m.inputs[0], "datatype", "FP16"), typed=True),
            Code.INVALID_ARGUMENT,
            "the datatype is UINT8",
        ),
        (wrong(lambda m: (m.inputs.pop(0), m.raw_input_contents.pop(0))), Code.INVALID_ARGUMENT, "'images' is missing"),
        (wrong(lambda m: m.outputs.add(name="scores")), Code.INVALID_ARGUMENT, "unknown output 'scores'"),
        (request(pixels(3), threshold="high"), Code.INVALID_ARGUMENT, "parameters.threshold: high isn't a number"),
        (request(pixels(3), threshold=float("nan")), Code.INVALID_ARGUMENT, "threshold"),
        (request(pixels(3), timeout="soon"), Code.INVALID_ARGUMENT, "parameters.timeout: soon isn't"),
        (request(pixels(3), shared_memory_region="x"), Code.INVALID_ARGUMENT, "unknown parameter"),
        (request(pixels(0, 1, 2, 3, 0)), Code.INVALID_ARGUMENT, "the limit is 4"),
        (request(pixels(66)), Code.INTERNAL, "inference failed"),
    ],
)
async def test_what_goes_wrong_has_its_code_its_reason_and_is_counted(message: Any, code: Code, said: str) -> None:
    async with rpc_server(FakeEngine(poison=frozenset({66}))) as live, channel(live) as open_channel:
        error = await failure(rpc(open_channel, "ModelInfer")(message))
        assert error.code() == code
        assert said in (error.details() or "")
        if message.model_name == "fake":
            label = "unknown" if code == Code.NOT_FOUND else "fake"
            outcome = "error" if code == Code.INTERNAL else "invalid"
            sample = f'skipvit_requests_total{{model="{label}",outcome="{outcome}"}}'
            assert await metric(live.port, sample) == 1
        response = await rpc(open_channel, "ModelInfer")(request(pixels(1)))
        assert outputs(response)["logits"].argmax() == 1


async def test_a_message_beyond_the_limit_is_refused_compressed_or_not() -> None:
    async with rpc_server(FakeEngine()) as live, channel(live) as open_channel:
        message = request(pixels(3))
        message.raw_input_contents[0] = bytes(5_000_000)
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            error = await failure(rpc(open_channel, "ModelInfer")(message, compression=compression))
            assert error.code() == Code.RESOURCE_EXHAUSTED
        assert len(gzip.compress(bytes(5_000_000))) < 300_000


async def test_a_full_queue_says_when_to_come_back() -> None:
    engine = FakeEngine()
    async with rpc_server(engine, max_pending_images=2) as live, channel(live) as open_channel:
        infer = rpc(open_channel, "ModelInfer")
        engine.hold()
        running = asyncio.ensure_future(infer(request(pixels(1))))
        await held(engine)
        waiting = asyncio.ensure_future(infer(request(pixels(1))))
        while await metric(live.port, "skipvit_pending_requests ") < 2:
            pass
        error = await failure(infer(request(pixels(2, 3))))
        assert error.code() == Code.RESOURCE_EXHAUSTED
        assert "the queue is full" in (error.details() or "")
        trailing = dict(error.trailing_metadata())
        assert trailing["retry-after"] == "1"
        assert trailing["grpc-retry-pushback-ms"] == "1000"
        engine.release()
        await asyncio.gather(running, waiting)
        assert await metric(live.port, 'skipvit_requests_total{model="fake",outcome="overloaded"}') == 1


@pytest.mark.parametrize("how", ["parameter", "deadline", "the shorter parameter", "the shorter deadline"])
async def test_the_deadline_is_the_shorter_of_the_rpcs_and_the_parameter(how: str) -> None:
    engine = FakeEngine()
    async with rpc_server(engine) as live, channel(live) as open_channel:
        engine.hold()
        timeout_us = {"parameter": 50_000, "the shorter parameter": 50_000, "the shorter deadline": 60_000_000}.get(how)
        parameters: dict[str, Any] = {} if timeout_us is None else {"timeout": timeout_us}
        deadline_s = {"deadline": 0.05, "the shorter parameter": 60, "the shorter deadline": 0.05}.get(how)
        message = request(pixels(3), typed=False, **parameters)
        error = await failure(rpc(open_channel, "ModelInfer")(message, timeout=deadline_s))
        assert error.code() == Code.DEADLINE_EXCEEDED
        while await metric(live.port, 'skipvit_requests_total{model="fake",outcome="timeout"}') < 1:
            pass
        assert await metric(live.port, 'skipvit_requests_total{model="fake",outcome="cancelled"}') == 0


@pytest.mark.parametrize("was_late", [False, True])
async def test_who_cancels_has_left_but_a_deadline_that_passed_is_the_applications_to_notice(was_late: bool) -> None:
    seen: list[str] = []
    began, deadline = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])
        began.set()
        left = asyncio.ensure_future(receive())
        noticed = asyncio.create_task(deadline.wait())
        await asyncio.wait({left, noticed}, return_when=asyncio.FIRST_COMPLETED)
        seen.append((await left)["type"] if left.done() else "deadline")
        left.cancel()
        noticed.cancel()
        ended.set()

    ended = asyncio.Event()
    asking = asyncio.create_task(Gateway(app, {}).ask("POST", "/", was_late=lambda: was_late))
    await began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    if was_late:
        deadline.set()
    await ended.wait()
    assert seen == ["http.request", "deadline" if was_late else "http.disconnect"]


async def test_a_cancelled_rpc_takes_its_images_out_of_the_queue() -> None:
    engine = FakeEngine()
    async with rpc_server(engine, max_batch_size=1) as live, channel(live) as open_channel:
        engine.hold()
        first = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(1)))
        await held(engine)
        call = rpc(open_channel, "ModelInfer")(request(pixels(2, 3)))
        waiting = asyncio.ensure_future(call)
        while await metric(live.port, "skipvit_pending_requests ") < 3:
            pass
        waiting.cancel()
        while await metric(live.port, 'skipvit_requests_total{model="fake",outcome="cancelled"}') < 1:
            pass
        engine.release()
        assert (await first)[0] == 200
    assert engine.batches == [[1]]


async def test_rest_and_rpc_share_a_batch() -> None:
    engine = FakeEngine()
    async with rpc_server(engine) as live, channel(live) as open_channel:
        engine.hold()
        first = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(0)))
        await held(engine)
        second = asyncio.ensure_future(rpc(open_channel, "ModelInfer")(request(pixels(1, 2))))
        while await metric(live.port, "skipvit_pending_requests ") < 3:
            pass
        third = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(3)))
        while await metric(live.port, "skipvit_pending_requests ") < 4:
            pass
        engine.release()
        assert (await first)[0] == (await third)[0] == 200
        assert outputs(await second)["logits"].argmax(axis=1).tolist() == [1, 2]
    assert engine.batches == [[0], [1, 2, 3]]


async def test_probes_for_orchestrators() -> None:
    async with rpc_server(FakeEngine(), drain_delay_s=300) as live, channel(live) as open_channel:
        check = rpc(open_channel, "Check", f"{HEALTH}.Health")

        async def status(service: str) -> int:
            return int((await check(MESSAGES["HealthCheckRequest"](service=service))).status)

        assert [await status(service) for service in ("", SERVICE, "liveness")] == [1, 1, 1]
        error = await failure(check(MESSAGES["HealthCheckRequest"](service="other")))
        assert error.code() == Code.NOT_FOUND
        live.app.state.lifecycle.begin_drain()
        assert [await status(service) for service in ("", SERVICE, "liveness")] == [2, 2, 1]
        assert not (await rpc(open_channel, "ServerReady")(MESSAGES["ServerReadyRequest"]())).ready
        assert (await rpc(open_channel, "ServerLive")(MESSAGES["ServerLiveRequest"]())).live
        assert not (await rpc(open_channel, "ModelReady")(MESSAGES["ModelReadyRequest"](name="fake"))).ready
        assert outputs(await rpc(open_channel, "ModelInfer")(request(pixels(1))))  # it is still answered


async def test_an_unknown_method_is_unimplemented() -> None:
    async with rpc_server(FakeEngine()) as live, channel(live) as open_channel:
        call = open_channel.unary_unary(f"/{SERVICE}/CudaSharedMemoryStatus")
        assert (await failure(call(b""))).code() == Code.UNIMPLEMENTED


async def test_on_shutdown_what_was_accepted_is_finished_and_no_more_is_taken() -> None:
    engine = FakeEngine()
    async with rpc_server(engine) as live, channel(live) as open_channel:
        infer = rpc(open_channel, "ModelInfer")
        engine.hold()
        running = asyncio.ensure_future(infer(request(pixels(1))))
        await held(engine)
        over_http = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(2)))  # holds up the HTTP server
        while await metric(live.port, "skipvit_pending_requests ") < 2:
            pass
        live.server.should_exit = True
        code = None
        while code != Code.UNAVAILABLE:
            async with channel(live) as another:
                try:
                    await rpc(another, "ServerLive")(MESSAGES["ServerLiveRequest"](), timeout=5)
                except grpc.aio.AioRpcError as error:
                    code = error.code()
        assert not running.done()
        assert not over_http.done()
        engine.release()
        assert outputs(await running)["logits"].argmax() == 1
        assert (await over_http)[0] == 200
        await live.task


async def test_on_shutdown_a_hung_engine_is_given_up_and_callers_are_told() -> None:
    engine = FakeEngine(deaf=True)
    async with rpc_server(engine, drain_timeout_s=0.2) as live, channel(live) as open_channel:
        engine.hold()
        hung = asyncio.ensure_future(rpc(open_channel, "ModelInfer")(request(pixels(1))))
        await held(engine)
        live.server.should_exit = True
        error = await failure(hung)
        assert error.code() in (Code.UNAVAILABLE, Code.CANCELLED)
        await live.task
        assert not live.app.state.lifecycle.finished_in_time


async def test_models_are_loaded_and_unloaded_by_triton_and_kserve_clients(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="other", version="7")
    loader = FakeLoader()
    wanted = Settings(
        grpc_port=0, model_repository=tmp_path, default_model="fake", repository_control=True, drain_delay_s=0
    )

    def use(port: int) -> None:
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            triton.load_model("other")
            assert triton.is_model_ready("other")
            assert [row.version for row in triton.get_model_repository_index().models] == ["1.0.0", "7"]
            triton.unload_model("other")
            assert not triton.is_model_ready("other")
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="StatusCode.NOT_FOUND.*'absent'"):
                triton.load_model("absent")
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="'config' isn't supported"):
                triton.load_model("other", config="{}")
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="PERMISSION_DENIED.*DEFAULT_MODEL"):
                triton.unload_model("fake")

    async with live_app(create_app(wanted, load=loader), wanted, loader.release) as live:
        await asyncio.to_thread(use, grpc_port(live))
        async with channel(live) as open_channel:  # KServe has the model's name where Triton has the folder's
            message = MESSAGES["RepositoryModelLoadRequest"](repository_name="other")
            response = await rpc(open_channel, "RepositoryModelLoad")(message)
            assert (response.model_name, response.isLoaded) == ("other", True)


_SHAPE = st.one_of(st.just([1, 14, 14, 3]), st.lists(st.sampled_from([-1, 0, 1, 2, 3, 14, 28, 2**40]), max_size=5))
_NAMES = st.sampled_from([("images", "UINT8"), ("threshold", "FP32"), ("images", "BOOL"), ("x", "BYTES"), ("", "")])
_RAW = st.sampled_from([b"", b"\0", bytes(4), bytes(14 * 14 * 3)])
_VALUE = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.floats())
_PARAMETERS = st.dictionaries(st.sampled_from(["threshold", "timeout", "binary_data_output", "\u00e9"]), _VALUE)


def test_no_message_is_our_fault() -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        live = runner.run(stack.enter_async_context(rpc_server(FakeEngine())))
        infer = rpc(runner.run(stack.enter_async_context(channel(live))), "ModelInfer")
        seen: set[Code] = set()

        @hypothesis_settings(max_examples=300, deadline=None)
        @given(
            tensors=st.lists(st.tuples(_NAMES, _SHAPE), max_size=3),
            raw=st.lists(_RAW, max_size=3),
            typed=st.lists(st.integers(0, 2**32 - 1), max_size=4),
            parameters=_PARAMETERS,
        )
        def send(
            tensors: list[tuple[tuple[str, str], list[int]]],
            raw: list[bytes],
            typed: list[int],
            parameters: dict[str, Any],
        ) -> None:
            message = MESSAGES["ModelInferRequest"](model_name="fake", raw_input_contents=raw)
            for (name, datatype), shape in tensors:
                tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
                if typed:
                    tensor.contents.uint_contents.extend(typed)
            for name, value in parameters.items():
                message.parameters[name].CopyFrom(parameter(value))

            async def code() -> Code:
                return await infer(message).code()

            seen.add(runner.run(code()))

        try:
            send()
        finally:
            runner.run(stack.aclose())
    assert Code.INVALID_ARGUMENT in seen
    assert seen <= {Code.OK, Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED}


def test_the_application_loads_no_grpc() -> None:
    code = "import sys, service.app, service.__main__; print([m for m in ('grpc', 'google') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_without_the_extra_a_port_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    check_extra(Settings())
    with pytest.raises(SettingsError, match=r"SKIPVIT_GRPC_PORT=1 needs the extra `grpc`.*skipvit\[grpc\]"):
        check_extra(Settings(grpc_port=1))


async def test_a_port_that_is_taken_is_refused() -> None:
    async with rpc_server(FakeEngine()) as live:
        wanted = Settings(grpc_port=grpc_port(live))

        def start() -> None:
            with TestClient(create_app(wanted, bundle=fake_bundle(), engine=FakeEngine())):
                pass

        with pytest.raises(SettingsError, match=f"SKIPVIT_GRPC_PORT={grpc_port(live)}: "):
            await asyncio.to_thread(start)


async def test_api_keys_hold_for_rpcs_too() -> None:
    key, line = make_key("alice")
    async with rpc_server(FakeEngine(), api_keys=line) as live, channel(live) as open_channel:
        infer = rpc(open_channel, "ModelInfer")
        error = await failure(infer(request(pixels(1))))
        assert error.code() == Code.UNAUTHENTICATED
        for shown in (("x-api-key", key), ("authorization", f"Bearer {key}")):
            assert (await infer(request(pixels(1)), metadata=(shown,))).model_name == "fake"
