"""The image, built and run as the manifest runs it. `make image-test` runs this; it takes minutes and needs a builder.

Where no registry answers, the base is Debian's own Python instead of python:slim, and the sizes printed say so.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from PIL import Image

from service.settings import Settings
from tests.k8s.containers import Container, Engine, images_of, size_mb
from tests.k8s.kubelet import free_port
from tests.k8s.rendered import ROOT, one, pod, settings

pytestmark = pytest.mark.timeout(1800)
MAX_MB = 500
MAX_ADDED_MB = 300  # on top of the base image: the virtual environment and the bundle
SNAKE = ROOT / "models/zoo/cifar100-vits14/samples/test/snake/203.png"
WEIGHTS = "/models/cifar100-vits14/weights.safetensors"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    return engine.build("cpu")


@pytest.fixture(scope="module")
def container(engine: Engine, image: str) -> Iterator[Container]:
    variables = [word for name, value in settings("overlays/cpu").items() for word in ("--env", f"{name}={value}")]
    with engine.running(image, *variables) as running:
        print(f"\nready after {running.wait_until_ready():.1f} s")
        yield running


def test_it_is_small(engine: Engine, image: str) -> None:
    bases = images_of(
        engine, ["localhost/skipvit-python-stand-in:bookworm", "docker.io/library/python:3.11-slim-bookworm"]
    )
    total = size_mb(engine, image)
    print(f"\n{total:.0f} MB, of which the base {bases}")
    assert total < MAX_MB
    for base in bases.values():
        assert total - base < MAX_ADDED_MB


def test_it_says_what_it_is(engine: Engine, image: str) -> None:
    config = engine.inspect(image)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["skipvit-serve"]  # no shell in between: the process gets SIGTERM itself
    assert "SKIPVIT_HOST=0.0.0.0" in config["Env"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert config["Labels"][f"org.opencontainers.image.{name}"] not in ("", "0", "unknown")
    health = config.get("Healthcheck") or engine.inspect(image)["Healthcheck"]
    assert health["Test"][:3] == ["CMD", "python", "-c"]


def test_it_classifies_and_counts(container: Container) -> None:
    answer = json.loads(container.ask("/v1/classify?threshold=0.5", SNAKE.read_bytes()))
    assert answer["results"][0]["predictions"][0]["label"] == "snake"
    assert 'skipvit_requests_total{model="cifar100-vits14",outcome="ok"} 1.0' in container.ask("/metrics").decode()


def test_it_is_confined(container: Container) -> None:
    who = container.inside("python", "-c", "import os; print(os.getuid(), os.getgid())")
    assert who.stdout.split() == ["10001", "10001"]
    status = container.inside("cat", "/proc/1/status").stdout
    assert "\nCapEff:\t0000000000000000\n" in status
    assert "\nNoNewPrivs:\t1\n" in status
    for path in ("/x", "/models/x", "/opt/venv/x"):
        assert "Read-only file system" in container.inside("python", "-c", f"open({path!r}, 'w')").stderr
    assert container.inside("python", "-c", "open('/tmp/x', 'w')").returncode == 0


@pytest.mark.parametrize("name", ["torch", "timm", "datasets", "models", "export"])
def test_it_has_nothing_of_training(container: Container, name: str) -> None:
    code = (
        f"import importlib.util, sys; spec = importlib.util.find_spec({name!r}); sys.exit(bool(spec and spec.loader))"
    )
    assert container.inside("python", "-c", code).returncode == 0


def test_it_has_no_compiler(container: Container) -> None:
    code = "import shutil, sys; sys.exit(any(shutil.which(name) for name in ('gcc', 'cc', 'g++', 'make', 'curl')))"
    assert container.inside("python", "-c", code).returncode == 0


def test_its_health_check_passes(engine: Engine, image: str, container: Container) -> None:
    config = engine.inspect(image)
    health = config["Config"].get("Healthcheck") or config["Healthcheck"]
    assert container.inside(*health["Test"][1:]).returncode == 0


def test_the_largest_images_fit_into_its_memory(container: Container) -> None:
    side_px = int(Settings().max_image_pixels ** 0.5)
    stream = io.BytesIO()
    Image.new("RGBA", (side_px, side_px), (200, 30, 30, 128)).save(stream, "PNG")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: container.ask("/v1/classify?preset=full", stream.getvalue()), range(8)))
    assert len(answers) == 8
    assert container.state["Running"]
    assert not container.state["OOMKilled"]


def test_sigterm_ends_it_with_0_in_the_grace_period(container: Container) -> None:
    code, log = container.terminate(pod("overlays/cpu")["terminationGracePeriodSeconds"])
    assert code == 0, log
    assert "Traceback" not in log


def test_a_wrong_variable_ends_it_with_one_line(engine: Engine, image: str) -> None:
    code, log = engine.refused(image, "--env", "SKIPVIT_MAX_BATCH_SIZE=many")
    assert (code, log.count("\n")) == (2, 1)
    assert "SKIPVIT_MAX_BATCH_SIZE='many'" in log


def test_a_broken_bundle_ends_it_with_one_line(engine: Engine, image: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"broken")
    (tmp_path / "weights").chmod(0o644)
    code, log = engine.refused(image, "--volume", f"{tmp_path / 'weights'}:{WEIGHTS}:ro")
    assert (code, log.count("\n")) == (2, 1)
    assert "weights.safetensors" in log


def test_the_rendered_deployment_runs_as_it_is_written(engine: Engine, image: str, tmp_path: Path) -> None:
    """By `podman play kube`: settings map, security context, limits and volume from the manifest itself."""
    if not engine.is_podman:
        pytest.skip("Docker plays no manifests; `podman play kube` does")
    deployment, settings_map = one("overlays/cpu", "Deployment"), one("overlays/cpu", "ConfigMap")
    deployment["spec"]["replicas"] = 1
    spec = deployment["spec"]["template"]["spec"]
    (played,) = spec["containers"]
    port = free_port()
    spec["hostNetwork"] = True  # and so nothing to map
    played["env"] = [{"name": "SKIPVIT_HOST", "value": "127.0.0.1"}, {"name": "SKIPVIT_PORT", "value": str(port)}]
    played["image"] = image
    for name in ("ports", "lifecycle", "startupProbe", "livenessProbe", "readinessProbe"):  # would be run as curl
        del played[name]
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump_all([settings_map, deployment]))
    try:
        done = engine.run("play", "kube", str(tmp_path / "deployment.yaml"))
        assert done.returncode == 0, done.stderr
        container = Container(engine, "skipvit-pod-0-server", port)
        container.wait_until_ready()
        assert container.inside("id", "-u").stdout.strip() == str(spec["securityContext"]["runAsUser"])
        environment = container.inside("env").stdout.splitlines()
        assert {f"{name}={value}" for name, value in settings_map["data"].items()} <= set(environment)
        assert "Read-only file system" in container.inside("python", "-c", "open('/x', 'w')").stderr
    finally:
        engine.run("play", "kube", "--down", str(tmp_path / "deployment.yaml"))


def test_two_workers_of_the_load_test_measure_one_service(engine: Engine, image: str, tmp_path: Path) -> None:
    worker = engine.build("loadtest")
    (job,) = one("loadtest", "Job")["spec"]["template"]["spec"]["containers"]
    files = []
    with engine.running(image) as running:
        running.wait_until_ready()
        script = job["args"][0].replace("http://skipvit", running.url)
        for index in range(2):
            given = {"JOB_COMPLETION_INDEX": index, "WORKERS": 2, "OPTIONS": "--rate 4 --seconds 5 --images 20"}
            options = [word for name, value in given.items() for word in ("--env", f"{name}={value}")]
            command = ["--entrypoint", job["command"][0], worker, *job["command"][1:], script]
            done = engine.run("run", "--rm", *engine.confinement(), *options, *command)
            assert done.returncode == 0, done.stderr
            files.append(tmp_path / f"{index}.json")
            files[-1].write_text(done.stdout)
    merged = subprocess.run(
        [sys.executable, "-m", "loadtest.merge", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert merged.returncode == 0, merged.stderr
    assert "2 workers" in merged.stdout


def test_the_gpu_image_serves_on_the_cpu_where_no_gpu_is(engine: Engine) -> None:
    with engine.running(engine.build("gpu")) as running:
        running.wait_until_ready()
        answer = json.loads(running.ask("/v1/classify?threshold=0.5", SNAKE.read_bytes()))
    assert answer["results"][0]["predictions"][0]["label"] == "snake"
