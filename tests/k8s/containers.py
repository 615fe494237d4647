"""The image, built and run: by Docker where its engine runs, else by buildah and podman."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.k8s.kubelet import free_port
from tests.k8s.rendered import K8S, pod, server
from tests.k8s.tools import tool

_MEBIBYTE = 2**20
# Where there is no systemd, journald or room for many files, podman's defaults fail.
_PODMAN = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def builder() -> ModuleType:
    """`k8s/build.py`, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("k8s_build", K8S / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Engine:
    """Runs containers as the manifest would: its user, its limits, nothing writable but /tmp."""

    def __init__(self, folder: Path) -> None:
        build = builder()
        self._folder = folder
        self._command = ["docker"] if build.has_docker() else [tool("podman")]
        self.is_podman = self._command != ["docker"]
        (folder / "containers.conf").write_text(_PODMAN)
        self._environment = {**build.storage(), "CONTAINERS_CONF": str(folder / "containers.conf")}

    def build(self, target: str) -> str:
        """Build a target and return the image's name."""
        image = f"localhost/skipvit:test-{target}"
        command = [sys.executable, str(K8S / "build.py"), "--stand-in-base", "--target", target, "--tag", image]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return image

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """One command of the engine."""
        command = [*self._command, *arguments]
        return subprocess.run(
            command,
            env=self._environment,
            cwd=self._folder,  # where one runs out of memory, conmon writes a file `oom`
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of an image or a container."""
        done = self.run("inspect", name)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def confinement(self) -> list[str]:
        """The manifest's limits as options."""
        limits, spec = server("overlays/cpu")["resources"]["limits"], pod("overlays/cpu")
        assert limits["memory"].endswith("Gi")
        (volume,) = spec["volumes"]
        size_bytes = int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * _MEBIBYTE
        user = f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
        options = ["--user", user, "--read-only", "--tmpfs", f"/tmp:rw,size={size_bytes}", "--cap-drop", "ALL"]
        options += ["--security-opt", "no-new-privileges", "--network", "host", "--no-healthcheck"]
        options += ["--memory", limits["memory"].removesuffix("i").lower(), "--cpus", limits["cpu"]]
        return options

    def refused(self, image: str, *options: str) -> tuple[int, str]:
        """Run a container that ends by itself; its exit code and everything it wrote."""
        done = self.run("run", "--rm", *self.confinement(), *options, image)
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def running(self, image: str, *options: str) -> Iterator[Container]:
        """A container that serves; removed at the end."""
        port = free_port()
        name = f"skipvit-test-{os.getpid()}-{port}"
        bind = ["--env", "SKIPVIT_HOST=127.0.0.1", "--env", f"SKIPVIT_PORT={port}"]  # the host's network is used
        done = self.run("run", "--detach", "--name", name, *self.confinement(), *bind, *options, image)
        try:
            assert done.returncode == 0, done.stderr
            yield Container(self, name, port)
        finally:
            self.run("rm", "--force", name)


class Container:
    """A running container."""

    def __init__(self, engine: Engine, name: str, port: int) -> None:
        self._engine = engine
        self.name = name
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_ready(self, timeout_s: float = 120) -> float:
        """Seconds until /readyz answered."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < timeout_s:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                    return time.monotonic() - began_s
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError(self._engine.run("logs", self.name).stderr)

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._engine.run("exec", self.name, *command)

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """The answer's body; an error status raises."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: bytes = answer.read()
        return found

    def terminate(self, grace_s: float) -> tuple[int, str]:
        """SIGTERM, as a kubelet sends it; the exit code and the log."""
        self._engine.run("kill", "--signal", "TERM", self.name)
        done = self._engine.run("wait", self.name, timeout_s=grace_s)
        logs = self._engine.run("logs", self.name)
        return int(done.stdout), logs.stdout + logs.stderr

    @property
    def state(self) -> dict[str, Any]:
        """Whether it runs, how it ended, whether it ran out of memory."""
        found: dict[str, Any] = self._engine.inspect(self.name)["State"]
        return found


def size_mb(engine: Engine, image: str) -> float:
    """Size of an image on disk, in MB of a million bytes, as registries and `images` show it."""
    return float(engine.inspect(image)["Size"]) / 1e6


def images_of(engine: Engine, names: Sequence[str]) -> dict[str, float]:
    """Sizes of those images that are here."""
    return {name: size_mb(engine, name) for name in names if engine.run("image", "inspect", name).returncode == 0}
