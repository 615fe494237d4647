"""timm's VisionTransformers: how one is made by its name, and what its parts tell of it."""

from __future__ import annotations

import timm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


class UnsupportedModel(ValueError):
    """The named timm model isn't built from the plain blocks that can be pruned."""


def create(name: str, size_px: int, classes: int, *, drop_path: float, any_size: bool) -> nn.Module:
    """timm's model of that name, randomly initialised; UnsupportedModel where timm itself has none, or can't build it.

    A name with a colon is of a place where timm looks for a config of its own: a hub, a folder.
    """
    if ":" in name:
        raise UnsupportedModel(f"{name!r} names a place: name a model of timm's own, its weights are read from a file")
    try:
        vit: nn.Module = timm.create_model(
            name, img_size=size_px, num_classes=classes, drop_path_rate=drop_path, dynamic_img_size=any_size
        )
    except (RuntimeError, TypeError, OSError, AssertionError) as error:
        reason = str(error) or type(error).__name__  # an assertion may say nothing
        raise UnsupportedModel(f"timm can't build {name!r} at {size_px} px: {reason}") from error
    return vit


def reads_prefix_only(vit: VisionTransformer) -> bool:
    """Whether the head reads no patch, so that the last layer needs to compute none."""
    return vit.global_pool in ("", "token") and vit.attn_pool is None


def check_supported(vit: nn.Module, name: str) -> None:
    """Raise UnsupportedModel, naming what is in the way, unless `vit` is a plain pre-norm VisionTransformer."""
    if not isinstance(vit, VisionTransformer):
        raise UnsupportedModel(f"{name} is a {type(vit).__name__}; only timm's VisionTransformer family can be pruned")
    if not _embeds_by_one_product(vit.patch_embed):
        raise UnsupportedModel(f"{name}: its patches come of a {type(vit.patch_embed).__name__}, not of one product")
    for index, block in enumerate(vit.blocks):
        if type(block) is not Block:
            raise UnsupportedModel(f"{name}: layer {index} is a {type(block).__name__}, not timm's pre-norm Block")
        if type(block.attn).__name__ != "Attention" or getattr(block.attn, "gate", None) is not None:
            raise UnsupportedModel(f"{name}: layer {index} has a {type(block.attn).__name__} with parts unknown here")
    if vit.num_prefix_tokens < 1:
        raise UnsupportedModel(f"{name} has no CLS or register token; at least one must always be kept")


def _embeds_by_one_product(embed: nn.Module) -> bool:
    """Whether each patch is embedded alone, as by timm's PatchEmbed and what stands for it, not by a stem before it."""
    proj, patch_px = (getattr(embed, name, None) for name in ("proj", "patch_size"))
    alone = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride == patch_px
    return alone and {name for name, _ in embed.named_children()} <= {"proj", "norm"}


def check_size(vit: VisionTransformer, size_px: int) -> None:
    """Raise UnsupportedModel unless a side of `size_px` is a whole number of patches."""
    if any(size_px % patch_px for patch_px in vit.patch_embed.patch_size):
        raise UnsupportedModel(
            f"an input of {size_px} px isn't a whole number of {max(vit.patch_embed.patch_size)}-px patches"
        )
