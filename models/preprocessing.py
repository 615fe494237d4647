"""PURE: from a decoded image to the model's input. The service does the same; a test holds the two equal to the pixel.

The rooms share no code, so `to_rgb` and `resize_crop` are written twice, once here and once in `service.preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """Any upright image as RGB: 16-bit grey scaled to 8 bits (Pillow clips it), transparency over white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((values + 128) // 257).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        white, image = Image.new("RGB", image.size, (255, 255, 255)), image.convert("RGBA")
        white.paste(image, mask=image)  # as `alpha_composite`, to the bit
        return white
    return image.convert("RGB")


def resize_crop(image: Image.Image, size_px: int) -> NDArray[np.uint8]:
    """The centre square of an RGB image, resized (bicubic, antialiased) to (size_px, size_px, 3) uint8."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))


def resize(pixels: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Boxes of a batch of RGB images at the model's size, as `resize_crop` does it: Pillow's antialiased bicubic.

    Separable, so two matrix products an image, on whatever device the images lie; rounded after each as Pillow does.
    Outside the image the border is mirrored. Equal to Pillow's result to one level of 256.

    Args:
        pixels: (B, h, w, 3) uint8.
        boxes: (B, 4) float: left, top, right, bottom in pixels; left > right mirrors the image.
        size_px: side of the result.

    Returns:
        (B, size_px, size_px, 3) float, whole numbers from 0 to 255.
    """
    _, height, width, _ = pixels.shape
    rows = _bicubic(boxes[:, 1], boxes[:, 3], height, size_px)  # (B, S, h)
    columns = _bicubic(boxes[:, 0], boxes[:, 2], width, size_px)  # (B, S, w)
    images = torch.einsum("bjw,bhwc->bhjc", columns, pixels.float()).round().clamp(0, 255)
    return torch.einsum("bih,bhjc->bijc", rows, images).round().clamp(0, 255)


def _bicubic(start: Tensor, end: Tensor, length: int, size_px: int) -> Tensor:
    """Resampling weights (B, size_px, length): Keys' kernel with a = -0.5, widened when shrinking, rows sum to 1."""
    scale = (end - start) / size_px  # (B,) negative: mirrored
    places = torch.arange(size_px, device=start.device) + 0.5
    centres = start[:, None] + places * scale[:, None]  # (B, S)
    margin = length // 2
    sources = torch.arange(-margin, length + margin, device=start.device)
    widened = scale.abs().clamp(min=1)[:, None, None]
    x = ((sources + 0.5 - centres[..., None]) / widened).abs()  # (B, S, length + 2 margin)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    inside = ((centres > 0) & (centres < length))[..., None]
    mirrored = torch.where(sources < 0, -1 - sources, torch.where(sources >= length, 2 * length - 1 - sources, sources))
    # Where a kernel inside the image reaches over its edge Pillow drops what is outside; boxes beyond it are mirrored.
    weights = weights.masked_fill(inside & (sources != mirrored), 0)
    weights = weights / weights.sum(-1, keepdim=True)
    folded = torch.zeros(*weights.shape[:2], length, device=start.device)
    return folded.index_add_(2, mirrored, weights)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB (B, H, W, 3) in [0, 255], uint8 or float -> float32 (B, 3, H, W), less the mean, over the deviation."""
    centre = torch.tensor(mean, device=images.device) * 255
    scale = 1 / (torch.tensor(std, device=images.device) * 255)
    return ((images.float() - centre) * scale).permute(0, 3, 1, 2)
