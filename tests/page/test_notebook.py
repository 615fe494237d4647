"""`docs/explain.ipynb` runs against the real service, and what is committed was drawn by such a run."""

from __future__ import annotations

import json
from typing import Any

import httpx
import matplotlib.pyplot as plt
import pytest

from tests.page.service_process import ROOT

NOTEBOOK = ROOT / "docs" / "explain.ipynb"
MAX_BYTES = 400_000


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_its_cells_run_against_a_live_service(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_URL", service)
    plt.switch_backend("agg")
    names: dict[str, Any] = {}
    try:
        for cell in code_cells():
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
        assert len(plt.get_fignums()) == 3
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    finally:
        plt.close("all")
        if isinstance(client := names.get("client"), httpx.Client):
            client.close()


def test_it_is_committed_as_executed_and_small() -> None:
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] in ("stream", "display_data", "execute_result") for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
