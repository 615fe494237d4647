"""Checkpoints on disk: a folder with `weights.safetensors` (fp16 storage) and `config.json`. A model bundle is one too.

Tensors carry timm's own names, what is ours is `gates.<layer>.*`, `bypasses.<layer>.*` and `exits.<layer>.*`: a
plain timm state dict in one file loads as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from models.config import PrunedViTConfig
from models.pruned_vit import PrunedViT, build
from models.regularise import FACTORS

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
TRAINING = "train.json"  # what `models.train` says of the run
OURS = ("gates.", "bypasses.", "exits.")  # what timm's model hasn't


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message names the file and the mend."""


def save(model: PrunedViT, folder: Path) -> None:
    """Write `model` to `folder`, rounding its weights to fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.removeprefix("vit."): tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial, metadata={"format": "pt", "timm_model": model.config.architecture})
    partial.replace(folder / WEIGHTS)  # never half a file, whenever the run is stopped
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=1) + "\n")


def load(folder: Path) -> PrunedViT:
    """The model in `folder`, float32, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    model = build(read_config(folder))
    model.load_state_dict(_timm_to_model(read_weights(folder / WEIGHTS)))
    return model.eval()


def read_config(folder: Path) -> PrunedViTConfig:
    """The config beside a checkpoint's weights; CheckpointError if it's missing or broken."""
    try:
        return PrunedViTConfig.from_json(json.loads((folder / CONFIG).read_text()))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder / CONFIG} is missing: give a folder written by `python -m models.train`"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG} is not a model config ({error})") from None


def read_summary(folder: Path) -> dict[str, Any]:
    """What the run that made the checkpoint says of itself; OSError if it is missing, ValueError if it isn't JSON."""
    return dict(json.loads((folder / TRAINING).read_text()))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as float32, by timm name."""
    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(f"{file} is missing: give a safetensors file in timm names") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}): fetch or write it anew") from None


def initialise(model: PrunedViT, source: Path, *, gates: bool = True, head: bool = True) -> list[str]:
    """Load a starting point into `model`: a checkpoint folder or a timm state dict in one file.

    The position embedding is resampled to the model's input size. Head, gates and bypasses may be absent from the
    source (or of another shape): they keep their random start, and their names are returned. `gates=False` leaves out
    the source's gates and bypasses, `head=False` its head.

    Raises:
        CheckpointError: any other tensor is missing or doesn't fit.
    """
    tensors = read_weights(source / WEIGHTS if source.is_dir() else source)
    vit, own = model.vit, model.state_dict()
    if (embedding := tensors.get("pos_embed")) is not None and embedding.shape != vit.pos_embed.shape:
        tensors["pos_embed"] = resample_abs_pos_embed(
            embedding,
            new_size=list(vit.patch_embed.grid_size),
            num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
        )
    left_out = (() if gates else OURS) + (() if head else ("vit.head",))
    wanted = {name for name in own if not name.startswith(left_out)}
    tensors = {k: v for k, v in _timm_to_model(tensors).items() if k in wanted}

    def optional(name: str) -> bool:
        return name.startswith(("vit.head", *OURS)) or name.rpartition(".")[2] in FACTORS

    tensors = {k: v for k, v in tensors.items() if not optional(k) or v.shape == own[k].shape}
    fresh = sorted(set(own) - set(tensors))
    wrong = [k for k in fresh if not optional(k)] + [k for k, v in tensors.items() if v.shape != own[k].shape]
    if wrong:
        raise CheckpointError(
            f"{source} doesn't fit {model.config.architecture}: {len(wrong)} tensors missing or misshapen, first "
            f"{wrong[0].removeprefix('vit.')!r}: name the matching model with --model"
        )
    model.load_state_dict(tensors, strict=False)
    return fresh


def at_size(model: PrunedViT, size_px: int) -> PrunedViT:
    """The same weights at another input size, the position embedding resampled; ValueError if patches don't fit."""
    if size_px == model.config.image_size_px:
        return model
    other = build(replace(model.config, image_size_px=size_px))
    tensors = dict(model.state_dict())
    tensors["vit.pos_embed"] = resample_abs_pos_embed(
        tensors["vit.pos_embed"],
        new_size=list(other.vit.patch_embed.grid_size),
        old_size=list(model.vit.patch_embed.grid_size),
        num_prefix_tokens=0 if model.vit.no_embed_class else model.vit.num_prefix_tokens,
    )
    other.load_state_dict(tensors)
    return other.train(model.training)


def _timm_to_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name if name.startswith(OURS) else f"vit.{name}": tensor for name, tensor in tensors.items()}


__all__ = [
    "CONFIG",
    "WEIGHTS",
    "CheckpointError",
    "at_size",
    "initialise",
    "load",
    "read_config",
    "read_weights",
    "save",
]
