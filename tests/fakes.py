"""Real stand-ins for the seams: an engine whose answers can be foretold, a clock that is set, a bundle on disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.artifact import Bundle, Manifest, Precision
from service.engine import EngineOutput
from service.errors import BundleError
from service.settings import Settings

LAYERS, GATED, CLASSES = 3, (1, 2), 4
PATCHES = {28: 16, 14: 4, 42: 36}  # by input size, of the engine
SIZES = (28, 14)  # of the manifest, unless a test wants more
_PER_KEPT, _CONSTANT, _FIXED = 1000, 500, 4000


class FakeClock:
    """Stands still until it is advanced."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class FakeEngine:
    """Answers by the first pixel of an image: label `pixel % CLASSES`; gated layers skip the share `threshold`.

    `hold()` makes it stop at the next batch until `release()`; images whose first pixel is in `poison` raise, those in
    `not_finite` get NaN logits. `deaf`: a hung one, which `terminate` doesn't reach. It never sleeps.
    """

    precision: Precision = "float32"
    beside: FakeEngine | None = None

    def __init__(
        self, *, poison: frozenset[int] = frozenset(), not_finite: frozenset[int] = frozenset(), deaf: bool = False
    ) -> None:
        self.deaf = deaf
        self.poison = poison
        self.not_finite = not_finite
        self.batches: list[list[int]] = []  # first pixels of every batch it was given
        self.sizes: list[int] = []
        self.on_batch: Callable[[], None] = lambda: None
        self.entered = threading.Event()
        self.terminated = 0
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        self.entered.clear()
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def terminate(self) -> None:
        self.terminated += 1
        if not self.deaf:
            self._open.set()

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        first = [int(value) for value in images[:, 0, 0, 0]]
        thresholds = threshold.copy()
        self.batches.append(first)
        self.sizes.append(images.shape[1])
        self.entered.set()
        self.on_batch()
        assert self._open.wait(60), "held for a minute: a test forgot to release the engine"
        assert [int(value) for value in images[:, 0, 0, 0]] == first, "the batch changed while it ran"
        if self.poison.intersection(first):
            raise RuntimeError("poison")
        patches = PATCHES[images.shape[1]]
        logits = np.zeros((len(images), CLASSES), np.float32)
        kept = np.ones((len(images), LAYERS, patches), np.bool_)
        for row, pixel in enumerate(first):
            logits[row, pixel % CLASSES] = np.nan if pixel in self.not_finite else 4.0 + pixel / 256
            for layer in GATED:
                kept[row, layer, : round(float(thresholds[row]) * patches)] = False
        return EngineOutput(logits, kept)


class FakeLoader:
    """Makes a `FakeEngine` of every bundle; `hold()` makes it wait, and names in `broken` raise BundleError."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.engines: list[FakeEngine] = []
        self.loaded: list[tuple[str, str]] = []  # name and version
        self.running = self.most_running = 0
        self.entered = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        self.entered.clear()
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def __call__(self, settings: Settings, bundle: Bundle) -> FakeEngine:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.entered.set()
        assert self._open.wait(60), "held for a minute: a test forgot to release the loader"
        self.running -= 1
        if bundle.manifest.name in self.broken:
            raise BundleError(f"{bundle.manifest.name} is broken")
        self.loaded.append((bundle.manifest.name, bundle.manifest.version))
        self.engines.append(FakeEngine())
        return self.engines[-1]


def fake_manifest(**changes: Any) -> Manifest:
    """The manifest that `FakeEngine` keeps."""
    return Manifest.model_validate(manifest_document(**changes))


def fake_bundle(**changes: Any) -> Bundle:
    """A bundle that has no files, for an application with a `FakeEngine`."""
    return Bundle(path=Path("fake"), manifest=fake_manifest(**changes))


FILES = ("anysize.onnx", "anysize-dense.onnx", "model.onnx", "model-14.onnx", "masked.onnx", "weights.safetensors")


def manifest_document(**changes: Any) -> dict[str, Any]:
    """The manifest as JSON would give it."""
    digest = {"sha256": hashlib.sha256(b"").hexdigest(), "size_bytes": 0}
    document = {
        "schema_version": 5,
        "name": "fake",
        "version": "1.0.0",
        "architecture": "none",
        "attention": "full_context",
        "labels": ["ant", "bee", "cat", "dog"],
        "preprocessing": {"interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
        "layers": LAYERS,
        "gated_layers": list(GATED),
        "graphs": [graph_document(size_px) for size_px in SIZES],
        "served": {"float32": "anysize.onnx"},
        "dense": {"float32": "anysize-dense.onnx"},
        "masked_graph": "masked.onnx",
        "presets": {
            "full": {"size_px": 28, "threshold": 0.0},
            "balanced": {"size_px": 28, "threshold": 0.5},
            "economy": {"size_px": 14, "threshold": 0.5},
        },
        "calibration": [
            _point(28, 0.0, 1.0, 0.90),
            _point(28, 0.5, 0.6, 0.88),
            _point(28, 1.0, 0.3, 0.50),
            _point(14, 0.0, 0.4, 0.80),
            _point(14, 0.5, 0.2, 0.70),
        ],
        "evaluation": {"data": "none", "images": 1, "top1": 0.9, "top5": 1.0, "runtime": "none"},
        "origin": {"licence": "none", "weights": "none"},
        "files": {name: digest for name in FILES},
    }
    return {**document, **changes}


def write_bundle(folder: Path, **changes: Any) -> Path:
    """Write a bundle that verifies (its graphs aren't graphs) into `folder/<name>`, or write it anew; return that."""
    document = manifest_document(**changes)
    path = folder / str(document["name"])
    path.mkdir(exist_ok=True)
    for name in document["files"]:
        content = f"content of {name}".encode()
        (path / name).write_bytes(content)
        document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(document))
    return path


def graph_document(size_px: int) -> dict[str, Any]:
    """An input size as the manifest has it."""
    layer = {"constant": _CONSTANT, "per_kept": _PER_KEPT, "per_kept_squared": 0}
    return {
        "file": "model.onnx" if size_px == 28 else f"model-{size_px}.onnx",
        "size_px": size_px,
        "patches": PATCHES[size_px],
        "dense_macs": _FIXED + LAYERS * (_CONSTANT + _PER_KEPT * PATCHES[size_px]),
        "timm_forward_macs": 2 * (_FIXED + LAYERS * (_CONSTANT + _PER_KEPT * PATCHES[size_px])),
        "fixed_macs": _FIXED,
        "layer_macs": [layer] * LAYERS,
    }


def _point(size_px: int, threshold: float, macs_ratio: float, accuracy: float) -> dict[str, Any]:
    return {
        "size_px": size_px,
        "threshold": threshold,
        "macs_ratio": {"mean": macs_ratio, "p10": macs_ratio, "p90": macs_ratio},
        "time_ratio": macs_ratio,
        "skipped_patches": 0.0,
        "keep_per_layer": [1.0] * LAYERS,
        "accuracy": accuracy,
    }
