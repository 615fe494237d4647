"""A rival: skipped attention (SkipAt, 2301.02240). Neighbouring layers attend alike, so some repeat the one before.

The paper's layers are those from the third to the eighth of twelve, and it puts a small convolution where the
attention was; here what the layer before attended to is taken as it is. It knows no gates.
"""

from __future__ import annotations

from torch import Tensor

from models.backbone import reads_prefix_only
from models.macs import Shape
from models.pruned_vit import PrunedViT, plain_block


def repeating_layers(layers: int, count: int) -> range:
    """The `count` layers that repeat, from 0: neighbours, from the third of twelve on, never the last.

    Raises:
        ValueError: there aren't so many.
    """
    first = max(1, layers // 4 - 1)
    if not 0 <= count <= layers - 1 - first:
        raise ValueError(f"{count} layers can't repeat the one before: of {layers} at most {layers - 1 - first} can")
    return range(first, first + count)


def repeated_forward(model: PrunedViT, images: Tensor, count: int) -> Tensor:
    """Classify with `count` layers that attend as the one before did; differentiable, without any gate.

    Args:
        model: its gates play no part.
        images: (B, 3, H, W) float, normalised.
        count: layers; those of the plain model's logits at 0.

    Returns:
        Logits (B, classes).

    Raises:
        ValueError: there aren't so many layers.
    """
    x, repeating = model.embed(images), repeating_layers(model.layers, count)
    *blocks, last = model.vit.blocks
    attended = x
    for layer, block in enumerate(blocks):
        if layer not in repeating:
            attended = block.attn(block.norm1(x))
        x = x + block.drop_path1(block.ls1(attended))
        x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    x = plain_block(last, x, model.vit.num_prefix_tokens) if reads_prefix_only(model.vit) else last(x)
    return model.head(x)


def repeated_macs(shape: Shape, count: int) -> int:
    """MACs of `repeated_forward` for one image: the dense model's without `count` attentions."""
    tokens, C = shape.prefix + shape.patches, shape.width
    return shape.dense - len(repeating_layers(shape.layers, count)) * (4 * C * C * tokens + 2 * C * tokens**2)
