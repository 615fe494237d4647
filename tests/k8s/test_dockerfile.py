"""The Dockerfile by reading it; `make image-test` builds and runs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from service.settings import Settings
from tests.k8s.rendered import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
STAGES = {
    match[1]: match[0].partition("\n")[2].strip()
    for match in re.finditer(r"^FROM \S+ AS (\S+)\n(?:(?!FROM ).*\n?)*", TEXT, re.M)
}


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_cpu_and_gpu_differ_in_nothing_but_their_runtime() -> None:
    assert list(STAGES)[-2:] == ["gpu", "cpu"]  # the last is what `docker build` builds
    for kind in ("python", "build"):
        assert f"{kind}-cpu" in STAGES
        assert f"{kind}-gpu" in STAGES
    assert STAGES["gpu"].replace("gpu", "cpu") == STAGES["cpu"].split("\n\n")[0]
    shared = STAGES["build-cpu"].replace("cpu", "gpu")
    assert [line for line in shared.splitlines() if line not in STAGES["build-gpu"].splitlines()] == []


@pytest.mark.parametrize(("extras", "wanted"), [("", "service-{}"), ("otel,grpc", "service-{},otel,grpc")])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_extras_are_installed_beside_the_runtime(kind: str, extras: str, wanted: str) -> None:
    stage = STAGES[f"build-{kind}"]
    assert stage.startswith("ARG EXTRAS=\n")
    word = re.search(r"--no-cache-dir (\S*service\S*)", stage)
    assert word
    done = subprocess.run(
        ["sh", "-c", f"echo {word[1]}"], env={"EXTRAS": extras}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f".[{wanted.format(kind)}]"
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(wanted.format(kind).split(",")) <= known.keys()


def test_base_images_are_pinned_by_digest() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S*)$", TEXT, re.M))
    for name in ("PYTHON", "CUDA"):
        assert ":" in arguments[f"{name}_IMAGE"]
        assert re.fullmatch(r"@sha256:[0-9a-f]{64}", arguments[f"{name}_DIGEST"])
        assert f"FROM ${{{name}_IMAGE}}${{{name}_DIGEST}} AS" in TEXT


def test_the_image_says_where_it_listens() -> None:
    assert f"\nEXPOSE {Settings().port}\n" in TEXT
    assert f"os.environ.get('SKIPVIT_PORT', '{Settings().port}')" in TEXT


def test_only_what_the_service_needs_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    copied = {word for match in re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.M) for word in match.split()}
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    for word in copied:
        assert (ROOT / word).exists()
