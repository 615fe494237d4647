"""Several models in one process: which there are, load, reload, unload. Engines are fakes, bundles are files."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http
from starlette.testclient import TestClient

from service.app import create_app
from service.artifact import load_bundle
from service.decode_pool import DecodePool
from service.errors import BundleError
from service.metrics import Metrics
from service.preprocess import ImageLimits
from service.repository import Repository
from service.settings import Settings
from tests.fakes import FakeEngine, FakeLoader, write_bundle
from tests.images import plain
from tests.service.live import Live, ask, live_app
from tests.service.test_live import held, metric
from tests.service.test_ops import value

INDEX = "/v2/repository/index"


def operate(path: str, action: str) -> str:
    return f"/v2/repository/models/{path}/{action}"


def settings(folder: Path, **changes: Any) -> Settings:
    known = {"model_repository": folder, "default_model": "fake", "repository_control": True, "drain_delay_s": 0}
    return Settings(**{**known, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository of two bundles, a folder that is none, and a hidden one."""
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="other", version="7")
    (tmp_path / "notes").mkdir()
    write_bundle(tmp_path, name="hidden").rename(tmp_path / ".hidden")
    return tmp_path


@pytest.fixture
def loader() -> Iterator[FakeLoader]:
    loader = FakeLoader()
    yield loader
    loader.release()


@pytest.fixture
def client(folder: Path, loader: FakeLoader) -> Iterator[TestClient]:
    with TestClient(create_app(settings(folder), load=loader)) as client:
        yield client


def index(client: TestClient, **body: Any) -> dict[str, tuple[str, str, str]]:
    response = client.post(INDEX, json=body)
    assert response.status_code == 200
    return {row["name"]: (row["version"], row["state"], row["reason"]) for row in response.json()}


def test_the_index_has_every_bundle_and_only_the_default_one_is_loaded(client: TestClient) -> None:
    assert index(client) == {"fake": ("1.0.0", "READY", ""), "other": ("7", "UNAVAILABLE", "not loaded")}
    assert index(client, ready=True) == {"fake": ("1.0.0", "READY", "")}
    assert client.post(INDEX).json() == client.post(INDEX, json={}).json()
    assert "model_repository" in client.get("/v2").json()["extensions"]


def test_a_model_is_loaded_served_under_its_name_and_unloaded(client: TestClient) -> None:
    assert client.post("/v1/classify?model=other", content=plain(3)).status_code == 404
    response = client.post(operate("other", "load"))
    assert response.json() == {"name": "other", "version": "7", "state": "READY", "reason": ""}
    assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["fake", "other"]
    answer = client.post("/v1/classify?model=other", content=plain(3)).json()
    assert answer["model"] == {"name": "other", "version": "7"}
    assert client.get("/v2/models/other/versions/7/ready").status_code == 200
    assert client.post("/v1/classify", content=plain(3)).json()["model"]["name"] == "fake"
    info = (
        'skipvit_model_info{architecture="none",attention="full_context",model="other",precision="float32",version="7"}'
    )
    assert value(client, info) == 1
    assert client.post(operate("other", "unload")).json()["state"] in ("UNLOADING", "UNAVAILABLE")
    assert index(client)["other"][1:] in (("UNAVAILABLE", "unloaded"), ("UNLOADING", index(client)["other"][2]))
    assert client.post("/v1/classify?model=other", content=plain(3)).status_code == 404
    assert client.get("/v2/models/other/ready").status_code == 404
    text = client.get("/metrics").text
    assert info not in text
    assert 'skipvit_cache_bytes{model="other"}' not in text
    assert 'skipvit_top1_agreement{model="other"}' not in text
    assert value(client, 'skipvit_requests_total{model="other",outcome="ok"}') == 1
    assert client.post(operate("other", "unload")).status_code == 200  # there is nothing to do
    assert client.post(operate("other", "load")).json()["state"] == "READY"
    assert client.post("/v1/classify?model=other", content=plain(3)).status_code == 200


def test_loading_is_off_unless_the_operator_says_so(folder: Path, loader: FakeLoader) -> None:
    with TestClient(create_app(settings(folder, repository_control=False), load=loader)) as client:
        for action in ("load", "unload"):
            response = client.post(operate("other", action))
            assert response.status_code == 403
            assert "SKIPVIT_REPOSITORY_CONTROL" in response.json()["error"]
        assert len(index(client)) == 2
    assert loader.loaded == [("fake", "1.0.0")]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (operate("absent", "load"), {}, 404, "no bundle 'absent'"),
        (operate("absent", "unload"), {}, 404, "no model 'absent'"),
        (operate(".hidden", "load"), {}, 404, "no bundle '.hidden'"),
        (operate("%2e%2e", "load"), {}, 404, "no bundle '..'"),
        (operate("notes", "load"), {}, 503, "manifest.json is missing"),
        (operate("fake", "unload"), {}, 403, "SKIPVIT_DEFAULT_MODEL"),
        (operate("other", "load"), {"parameters": {"config": "{}"}}, 400, "'config' isn't supported"),
        (operate("other", "load"), {"parameters": {"file:1/model.onnx": "AAAA"}}, 400, "isn't supported"),
        (operate("other", "load"), [], 400, "body: "),
        (INDEX, {"ready": "yes"}, 400, "ready: "),
    ],
)
def test_what_cant_be_done_is_refused_by_name(client: TestClient, path: str, body: Any, status: int, said: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status
    assert said in response.json()["error"]
    assert client.post("/v1/classify", content=plain(3)).status_code == 200


@pytest.mark.parametrize("wanted", ["all", "other", " other , fake"])
def test_the_settings_say_what_is_loaded_at_the_start(folder: Path, loader: FakeLoader, wanted: str) -> None:
    with TestClient(create_app(settings(folder, load_models=wanted), load=loader)) as client:
        while client.get("/readyz").status_code == 503:
            pass
        assert {name: state for name, (_, state, _) in index(client).items()} == {"fake": "READY", "other": "READY"}
    assert loader.loaded == [("fake", "1.0.0"), ("other", "7")]


def test_the_default_model_serves_while_others_load_but_the_service_isnt_ready(
    folder: Path, loader: FakeLoader
) -> None:
    loader.hold()
    wanted = settings(folder, load_models="all")
    with TestClient(
        create_app(wanted, bundle=load_bundle(folder / "fake"), engine=FakeEngine(), load=loader)
    ) as client:
        while index(client)["other"][1] != "LOADING":
            pass
        assert client.get("/readyz").status_code == 503
        assert client.get("/v2/models/fake/ready").status_code == 200
        assert client.post("/v1/classify", content=plain(3)).status_code == 200
        loader.release()
        while client.get("/readyz").status_code == 503:
            pass
        assert client.post("/v1/classify?model=other", content=plain(3)).status_code == 200


def test_another_model_that_fails_is_unavailable_and_says_why(folder: Path, loader: FakeLoader) -> None:
    write_bundle(folder, name="third")
    (folder / "third" / "weights.safetensors").write_bytes(b"")
    loader.broken.add("other")
    with TestClient(create_app(settings(folder, load_models="all"), load=loader)) as client:
        while client.get("/readyz").status_code == 503:
            pass
        found = index(client)
        assert found["other"] == ("7", "UNAVAILABLE", "other is broken")
        assert found["third"][1] == "UNAVAILABLE"
        assert "weights.safetensors" in found["third"][2]
        assert client.post("/v1/classify", content=plain(3)).status_code == 200
        loader.broken.clear()
        assert client.post(operate("other", "load")).json() == {
            "name": "other",
            "version": "7",
            "state": "READY",
            "reason": "",
        }


def test_without_a_named_model_the_service_isnt_ready_and_says_why_until_it_is_loaded(
    folder: Path, loader: FakeLoader
) -> None:
    reason = "no bundle 'absent' in the model repository"
    with TestClient(create_app(settings(folder, load_models="absent,other"), load=loader)) as client:
        while "absent" not in index(client) or index(client)["other"][1] != "READY":
            pass
        assert index(client)["absent"] == ("", "UNAVAILABLE", reason)
        assert client.post("/v1/classify?model=other", content=plain(3)).status_code == 200
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["detail"].endswith(
            f"starting; it waits for a model that can't be loaded: 'absent': {reason}"
        )
        write_bundle(folder, name="absent")
        assert client.post(operate("absent", "load")).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_the_default_model_failing_ends_the_start(folder: Path, loader: FakeLoader) -> None:
    loader.broken.add("fake")
    with (
        pytest.raises(BundleError, match="fake is broken"),
        TestClient(create_app(settings(folder, load_models="all"), load=loader)),
    ):
        pass


def test_an_unchanged_bundle_isnt_loaded_again_and_a_changed_one_is(
    client: TestClient, folder: Path, loader: FakeLoader
) -> None:
    assert client.post(operate("fake", "load")).json()["version"] == "1.0.0"
    assert len(loader.loaded) == 1
    write_bundle(folder, version="2.0.0")
    assert client.post(operate("fake", "load")).json()["version"] == "2.0.0"
    assert len(loader.loaded) == 2
    assert client.post("/v1/classify", content=plain(3)).json()["model"]["version"] == "2.0.0"
    info = [row for row in client.get("/metrics").text.splitlines() if row.startswith("skipvit_model_info{")]
    assert len(info) == 1
    assert 'version="2.0.0"' in info[0]


def test_one_whose_times_are_of_the_engines_precision_isnt_loaded_again_either(
    folder: Path, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "precision", "int8")
    write_bundle(folder, packing={"int8": 0.35})
    with TestClient(create_app(settings(folder), load=loader)) as client:
        assert client.post(operate("fake", "load")).status_code == 200
    assert len(loader.loaded) == 1


def test_a_reload_that_fails_changes_nothing_and_is_noted(client: TestClient, folder: Path, loader: FakeLoader) -> None:
    write_bundle(folder, version="2.0.0")
    loader.broken.add("fake")
    response = client.post(operate("fake", "load"))
    assert response.status_code == 503
    assert response.json() == {"error": "fake is broken"}
    assert index(client)["fake"] == ("1.0.0", "READY", "the last load failed: fake is broken")
    assert client.post("/v1/classify", content=plain(3)).json()["model"]["version"] == "1.0.0"
    (folder / "fake" / "manifest.json").write_text("{")
    assert client.post(operate("fake", "load")).status_code == 503
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/classify", content=plain(3)).status_code == 200


@asynccontextmanager
async def live(folder: Path, loader: FakeLoader, **changes: Any) -> AsyncIterator[Live]:
    def release() -> None:
        loader.release()
        for engine in loader.engines:
            engine.release()

    wanted = settings(folder, **changes)
    async with live_app(create_app(wanted, load=loader), wanted, release) as server:
        yield server


async def states(port: int) -> dict[str, str]:
    _, body = await ask(port, "POST", INDEX)
    return {row["name"]: row["state"] for row in json.loads(body)}


async def test_requests_flow_while_a_model_is_reloaded_again_and_again(folder: Path, loader: FakeLoader) -> None:
    async with live(folder, loader) as server:
        seen: list[tuple[int, str]] = []
        enough = asyncio.Event()

        async def flow(pixel: int) -> None:
            while not enough.is_set():
                status, body = await ask(server.port, "POST", "/v1/classify", plain(pixel))
                seen.append((status, json.loads(body)["model"]["version"] if status == 200 else str(body)))

        flows = [asyncio.create_task(flow(pixel)) for pixel in range(8)]
        for version in range(2, 12):
            write_bundle(folder, version=str(version))
            status, body = await ask(server.port, "POST", operate("fake", "load"))
            assert (status, json.loads(body)["version"]) == (200, str(version))
            while (200, str(version)) not in seen:
                assert {status for status, _ in seen} <= {200}, seen
                await asyncio.sleep(0)
        enough.set()
        await asyncio.gather(*flows)
        assert {status for status, _ in seen} == {200}
        assert {version for _, version in seen} == {"1.0.0", *map(str, range(2, 12))}
        assert await metric(server.port, 'skipvit_requests_total{model="fake",outcome="ok"}') == len(seen)


async def test_a_request_that_chose_the_old_model_is_answered_by_it_and_then_it_is_freed(
    folder: Path, loader: FakeLoader
) -> None:
    gc.disable()  # the old engine must go by itself
    try:
        async with live(folder, loader) as server:
            (old,) = loader.engines
            old.hold()
            running = asyncio.create_task(ask(server.port, "POST", "/v1/classify", plain(1)))
            await held(old)
            body = plain(2)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = ["POST /v1/classify HTTP/1.1", "Host: x", "Connection: close", "Expect: 100-continue"]
            writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode())
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # it has chosen its model
            write_bundle(folder, version="2")
            assert (await ask(server.port, "POST", operate("fake", "load")))[0] == 200
            newer = await ask(server.port, "POST", "/v1/classify", plain(3))
            assert json.loads(newer[1])["model"]["version"] == "2"
            assert await metric(server.port, "skipvit_pending_requests ") == 1  # the old model's still counts
            gone = weakref.ref(old)
            loader.engines.remove(old)
            old.release()
            del old
            writer.write(body)
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b'"version":"1.0.0"' in answer
            status, content = await running
            assert (status, json.loads(content)["model"]["version"]) == (200, "1.0.0")
            while gone() is not None:
                await asyncio.sleep(0)
    finally:
        gc.enable()


async def test_an_unloaded_model_finishes_what_it_had(folder: Path, loader: FakeLoader) -> None:
    async with live(folder, loader, load_models="all") as server:
        while (await ask(server.port, "GET", "/readyz"))[0] != 200:
            pass
        other = loader.engines[1]
        other.hold()
        running = asyncio.create_task(ask(server.port, "POST", "/v1/classify?model=other", plain(1)))
        await held(other)
        status, body = await ask(server.port, "POST", operate("other", "unload"))
        assert (status, json.loads(body)["state"]) == (200, "UNLOADING")
        assert (await ask(server.port, "POST", "/v1/classify?model=other", plain(1)))[0] == 404
        other.release()
        assert (await running)[0] == 200
        while (await states(server.port))["other"] != "UNAVAILABLE":
            pass


async def test_a_retired_engine_that_hangs_isnt_alive(folder: Path, loader: FakeLoader) -> None:
    async with live(folder, loader, load_models="all", hang_timeout_s=0.001) as server:
        while (await ask(server.port, "GET", "/readyz"))[0] != 200:
            pass
        loader.engines[1].hold()
        running = asyncio.create_task(ask(server.port, "POST", "/v1/classify?model=other", plain(1)))
        await held(loader.engines[1])
        assert (await ask(server.port, "POST", operate("other", "unload")))[0] == 200
        while (await ask(server.port, "GET", "/healthz"))[0] != 503:
            pass
        loader.engines[1].release()
        assert (await running)[0] == 200


async def test_models_are_loaded_one_at_a_time_and_a_caller_who_leaves_doesnt_stop_one(
    folder: Path, loader: FakeLoader
) -> None:
    write_bundle(folder, name="third")
    async with live(folder, loader) as server:
        loader.hold()
        leaving = asyncio.create_task(ask(server.port, "POST", operate("other", "load")))
        assert await asyncio.to_thread(loader.entered.wait, 10)
        staying = asyncio.create_task(ask(server.port, "POST", operate("third", "load")))
        leaving.cancel()
        while (await states(server.port))["other"] != "LOADING":
            pass
        loader.release()
        assert (await staying)[0] == 200
        while set((await states(server.port)).values()) != {"READY"}:
            pass
    assert loader.most_running == 1
    assert [name for name, _ in loader.loaded] == ["fake", "other", "third"]


async def test_the_service_ends_while_a_model_loads(folder: Path, loader: FakeLoader) -> None:
    async with live(folder, loader) as server:
        loader.hold()
        loading = asyncio.create_task(ask(server.port, "POST", operate("other", "load")))
        assert await asyncio.to_thread(loader.entered.wait, 10)
        waiting = asyncio.create_task(ask(server.port, "POST", operate("fake", "load")))
    assert {status for status, _ in await asyncio.gather(loading, waiting)} <= {200, 503}


async def test_reloads_and_unloads_leave_no_memory_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    """With real engines; a reload makes room for two models, which stays, and no further one takes more."""
    for name in ("first", "second"):
        copy = shutil.copytree(tiny_bundle, tmp_path / name)
        rename(copy, name=name)
    wanted = Settings(model_repository=tmp_path, default_model="first", threads=1, max_batch_size=8)
    repository = Repository(
        wanted, "first", Metrics(), DecodePool(threads=1, max_pending=8, limits=ImageLimits(1000, 1000))
    )
    await repository.open()
    sizes_bytes = []
    for version in range(12):
        rename(tmp_path / "first", version=str(version))
        await repository.load("first")
        await repository.load("second")
        await repository.unload("second")
        while len(repository.batchers) > 1:
            await asyncio.sleep(0)
        sizes_bytes.append(resident_bytes())
    assert await repository.close(10)
    assert max(sizes_bytes[6:]) < max(sizes_bytes[:6]) + 16 * 2**20, sizes_bytes


def rename(bundle: Path, **changes: str) -> None:
    """Change the manifest as an operator would replace a bundle: no reader ever sees half of it."""
    document = json.loads((bundle / "manifest.json").read_text())
    (bundle / "next.json").write_text(json.dumps({**document, **changes}))
    (bundle / "next.json").replace(bundle / "manifest.json")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_tritonclient_loads_and_unloads_unchanged(folder: Path, loader: FakeLoader) -> None:
    def use(port: int) -> None:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as triton:
            assert not triton.is_model_ready("other")
            triton.load_model("other")
            assert triton.is_model_ready("other")
            assert {row["name"]: row["state"] for row in triton.get_model_repository_index()} == {
                "fake": "READY",
                "other": "READY",
            }
            triton.unload_model("other")
            assert not triton.is_model_ready("other")
            with pytest.raises(tritonclient.http.InferenceServerException, match="no bundle 'absent'"):
                triton.load_model("absent")
            with pytest.raises(tritonclient.http.InferenceServerException, match="isn't supported"):
                triton.load_model("other", config="{}")

    async with live(folder, loader) as server:
        await asyncio.to_thread(use, server.port)
