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
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def resize_crop(image: Image.Image, size_px: int) -> NDArray[np.uint8]:
    """The centre square of an RGB image, resized (bicubic, antialiased) to (size_px, size_px, 3) uint8."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 RGB (B, H, W, 3) -> float32 (B, 3, H, W): scaled to [0, 1], less the mean, over the deviation."""
    centre = torch.tensor(mean, device=images.device) * 255
    scale = 1 / (torch.tensor(std, device=images.device) * 255)
    return ((images.float() - centre) * scale).permute(0, 3, 1, 2)
