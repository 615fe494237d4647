"""The house's rules, as tests: who imports whom, how long things may be, what files may not be called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("models", "export", "service", "loadtest")
SOURCES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
DRAWERS = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 60


def test_rooms_import_only_what_they_may() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_service_loads_no_torch() -> None:
    names = "('torch', 'timm', 'onnxruntime')"  # a runtime is imported when an engine is made
    code = f"import sys, service.app, service.__main__; print([m for m in {names} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_and_functions_are_short_and_say_what_they_are(file: Path) -> None:
    text = file.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    assert ast.get_docstring(tree), "no docstring at the top"
    assert file.stem not in DRAWERS
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_only_metrics_knows_prometheus() -> None:
    users = [file.name for file in SOURCES if re.search(r"^\s*(from|import) prometheus_client", file.read_text(), re.M)]
    assert users == ["metrics.py"]


def test_only_tracing_knows_opentelemetry() -> None:
    users = [file.name for file in SOURCES if re.search(r"^\s*(from|import) opentelemetry", file.read_text(), re.M)]
    assert users == ["tracing.py"]


def test_every_test_folder_is_a_package() -> None:
    folders = {file.parent for file in (ROOT / "tests").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
