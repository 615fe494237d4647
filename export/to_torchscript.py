"""TorchScript of the sparse module, for those who serve from torch or C++. It carries its weights (float32)."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from export.graph import ServedViT, example_inputs
from models.pruned_vit import PrunedViT


def to_torchscript(model: PrunedViT, file: Path) -> None:
    """Trace the sparse path and save it; counts of kept patches stay dynamic (see `models.selection.kept_rows`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's input-size asserts are traced as constants, as they should be
        traced = torch.jit.trace(ServedViT(model, "sparse").eval(), example_inputs(model), check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), str(file))
