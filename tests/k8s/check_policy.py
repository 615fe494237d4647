"""Policies that others have agreed on, by checkov, over everything rendered; part of `make k8s-test`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.rendered import DEPLOYABLE, ROOT, text
from tests.k8s.tools import tool

# What we don't do, and why not.
SKIPPED = {
    "CKV_K8S_43": "images by tag: the digest is known when the registry has it; tags are never used twice",
    "CKV_K8S_15": "IfNotPresent: with such tags, Always would only make every restart wait for the registry",
    "CKV_DOCKER_7": "the base is a variable with a version and a digest, which checkov doesn't resolve",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in DEPLOYABLE:
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(text(name))
    (tmp_path / "Dockerfile").write_text((ROOT / "Dockerfile").read_text())
    return tmp_path


def checkov(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    own = Path(sys.prefix) / "checkov/bin/checkov"
    program = str(own) if own.exists() else tool("checkov")
    command = [program, "--framework", "kubernetes", "dockerfile", "--skip-download", "--compact", "--quiet"]
    command += ["--directory", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_nothing_breaks_a_policy(folder: Path) -> None:
    done = checkov(folder, "--skip-check", ",".join(SKIPPED))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("policy", SKIPPED)
def test_what_is_skipped_is_still_what_we_do(folder: Path, policy: str) -> None:
    assert f"Check: {policy}" in checkov(folder, "--check", policy).stdout


def test_a_pod_with_rights_is_found(folder: Path) -> None:
    manifest = folder / "overlays-cpu.yaml"
    content = manifest.read_text()
    assert "readOnlyRootFilesystem: true" in content
    manifest.write_text(content.replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"))
    done = checkov(folder, "--skip-check", ",".join(SKIPPED))
    assert done.returncode != 0
    assert "CKV_K8S_22" in done.stdout
