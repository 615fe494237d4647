"""What a timm VisionTransformer's parts tell of it."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer


def reads_prefix_only(vit: VisionTransformer) -> bool:
    """Whether the head reads no patch, so that the last layer needs to compute none."""
    return vit.global_pool in ("", "token") and vit.attn_pool is None
