"""The served engine, asked as `models.evaluate` asks torch: so that what is measured is what users get."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort
import torch
from torch import Tensor

from models.checkpoint import CheckpointError
from models.evaluate import Answers
from service.artifact import Precision, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError
from service.onnx_engine import OnnxEngine


class Served(NamedTuple):
    """A bundle, ready to be evaluated."""

    sizes_px: tuple[int, ...]
    answers: Answers
    runtime: str  # for the record


def open_bundle(folder: Path, precision: Precision = "float32") -> Served:
    """The engine of the bundle in `folder`, at all its sizes. CheckpointError, later too, says what is wrong."""
    try:
        bundle = load_bundle(folder)
        engine = OnnxEngine(bundle, threads=usable_cpus(), precision=precision)
    except ServiceError as error:
        raise CheckpointError(str(error)) from None

    def answers(pixels: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        try:
            out = engine.infer(pixels.numpy(), threshold.numpy())
        except ServiceError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        return torch.from_numpy(out.logits), torch.from_numpy(out.kept)

    provider = engine.execution.providers[0].removesuffix("ExecutionProvider")
    runtime = f"onnxruntime {ort.__version__} ({provider}, {precision}), the served graphs"
    return Served(bundle.manifest.sizes_px, answers, runtime)
