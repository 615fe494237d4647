"""Checkpoints come back as they went, and broken ones say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import checkpoint
from models.checkpoint import CheckpointError
from tests.models.builders import random_images, random_vit


def test_a_saved_model_loads_with_its_config_and_fp16_weights(tmp_path: Path) -> None:
    model = random_vit(gated_layers=(1, 3))
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name
    assert all(tensor.dtype == torch.float16 for tensor in load_file(tmp_path / "weights.safetensors").values())


def test_a_plain_timm_state_dict_of_another_input_size_is_a_starting_point(tmp_path: Path) -> None:
    source, file = random_vit(image_size_px=160), tmp_path / "backbone.safetensors"
    save_file({k: v.half() for k, v in source.vit.state_dict().items() if not k.startswith("head")}, file)
    model = random_vit(image_size_px=64, gated_layers=(0,), seed=1)
    fresh = checkpoint.initialise(model, file)
    assert fresh == [
        "gates.0.fc1.bias",
        "gates.0.fc1.weight",
        "gates.0.fc2.bias",
        "gates.0.fc2.weight",
        "vit.head.bias",
        "vit.head.weight",
    ]
    expected = source.vit.blocks[2].mlp.fc1.weight.half().float()
    assert torch.equal(model.vit.blocks[2].mlp.fc1.weight, expected)
    assert model.vit.pos_embed.shape[1] == 17


def test_the_same_weights_run_at_another_size() -> None:
    model = random_vit(image_size_px=96)
    small = checkpoint.at_size(model, 64)
    with torch.inference_mode():
        assert small(random_images(small, 2), torch.full((2,), 0.5)).kept.shape == (2, 6, 16)
    with pytest.raises(ValueError, match="whole number of 16-px patches"):
        checkpoint.at_size(model, 70)


def test_gates_of_the_source_are_left_out_on_request(tmp_path: Path) -> None:
    source, model = random_vit(gated_layers=(1,)), random_vit(gated_layers=(1,), seed=1)
    checkpoint.save(source, tmp_path)
    name = "gates.1.fc1.weight"
    before = model.state_dict()[name].clone()
    assert len(checkpoint.initialise(model, tmp_path, gates=False)) == 4
    assert torch.equal(model.state_dict()[name], before)
    assert checkpoint.initialise(model, tmp_path) == []
    assert torch.equal(model.state_dict()[name], source.state_dict()[name].half().float())


def test_each_broken_checkpoint_is_named_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        checkpoint.load(tmp_path)
    model = random_vit()
    checkpoint.save(model, tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"weights.safetensors is not a whole safetensors file"):
        checkpoint.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors is missing"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a model config"):
        checkpoint.load(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    checkpoint.save(random_vit("vit_tiny_patch16_224", 64), tmp_path)
    with pytest.raises(CheckpointError, match="doesn't fit test_vit"):
        checkpoint.initialise(random_vit(), tmp_path)
