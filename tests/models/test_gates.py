"""The gate is the write-up's: one small MLP a layer, on each patch alone."""

from __future__ import annotations

import torch

from models.config import PrunedViTConfig
from models.gates import MLPGate
from models.pruned_vit import build


def test_vit_base_has_gates_of_768_x_64_x_1() -> None:
    model = build(PrunedViTConfig("vit_base_patch16_224", 32, ("a", "b"), gated_layers=tuple(range(12))))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.gates["11"].state_dict().items()}
    assert shapes == {"fc1.weight": (64, 768), "fc1.bias": (64,), "fc2.weight": (1, 64), "fc2.bias": (1,)}
    assert len(model.gates) == 12


def test_a_score_depends_on_its_own_patch_only_and_prefix_tokens_have_none() -> None:
    gate, x = MLPGate(16), torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 3] += 1
    before, after = gate(x, 2), gate(changed, 2)
    assert before.shape == (2, 5)
    assert (before != after).nonzero()[:, 1].unique().tolist() == [1]
