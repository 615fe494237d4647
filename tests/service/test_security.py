"""What the service must not do, whatever it is asked: run other decoders, unpickle, fetch, write."""

from __future__ import annotations

import ast
import base64
import os
import resource
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.images import bad_images, good_images
from tests.service.process import running

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "service").rglob("*.py"))
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FETCHING = {"urllib.request", "http.client", "httpx", "requests", "aiohttp", "urllib3", "ftplib"}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_unpickles_evaluates_fetches_or_starts_processes(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert not imported(tree) & (UNSAFE | FETCHING | {"subprocess"})
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"eval", "exec", "np.load", "numpy.load", "np.fromregex", "os.system", "os.popen"}


def test_only_three_decoders_are_ever_loaded() -> None:
    """All of Pillow's others stay out of the process, also when bytes claim to be something else."""
    code = (
        "import base64, sys, service.app\n"
        "from service.preprocess import ImageLimits, read\n"
        "from service.errors import ServiceError\n"
        "for line in sys.stdin:\n"
        "    try: read(base64.b64decode(line), ImageLimits(10**7, 10**7), 28)\n"
        "    except ServiceError: pass\n"
        "print(*sorted(name for name in sys.modules if name.startswith('PIL.') and name.endswith('Plugin')))\n"
    )
    images = [*good_images().values(), *(data for data, _ in bad_images().values())]
    lines = "\n".join(base64.b64encode(data).decode() for data in images)
    done = subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.removeprefix("PIL.").removesuffix("ImagePlugin") for name in done.stdout.split()}
    assert loaded - {"Tiff"} == {"Jpeg", "Png", "WebP"}  # Tiff: EXIF is written in its tables; nothing opens one


def _no_files() -> None:
    """In the child: a regular file can't grow, so that every write fails, native ones too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _as_nobody() -> list[str]:
    """The command that changes to a user without rights, where that is possible and Python can be read by it."""
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    probe = [*prefix, sys.executable, "-c", "import service.app"]
    return prefix if subprocess.run(probe, cwd=ROOT, capture_output=True, check=False).returncode == 0 else []


def test_it_serves_without_rights_and_without_writing_anything() -> None:
    environment = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "SKIPVIT_DRAIN_DELAY_S": "0"}
    command = [*_as_nobody(), sys.executable, "-m", "service", "--port", "0", "--max-batch-size", "2"]
    with running(command, environment, preexec=_no_files) as server:
        image = good_images()["rgb png"]
        for path in ("/v1/classify", "/v1/classify?explain=overlay", "/v1/classify?size=56"):
            request = urllib.request.Request(server.url + path, image, {"Content-Type": "image/png"})
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.status == 200
        with urllib.request.urlopen(server.url + "/metrics", timeout=60) as response:
            assert response.status == 200
        code, log = server.stop()
    assert code == 0, log
    assert "too large" not in log
    assert "Errno" not in log
