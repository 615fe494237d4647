"""Which patches were computed, as a picture: a tile for each layer, skipped patches blacked out. Pure."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_MIN_TILE_PX = 112  # below this a tile is enlarged by a whole factor
_CAPTION_PX = 14
_GAP_PX = 4


def overlay(image: NDArray[np.uint8], kept: NDArray[np.bool_]) -> Image.Image:
    """Draw `kept` (L, P), P a square number, over the model's own crop `image` (S, S, 3); returns an RGB image."""
    layers, patches = kept.shape
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise ValueError(f"{patches} patches are no square grid")
    size_px = image.shape[0]
    enlarge = max(1, -(-_MIN_TILE_PX // size_px))
    tile_px = size_px * enlarge
    columns = math.ceil(math.sqrt(layers))
    rows = -(-layers // columns)
    sheet = Image.new(
        "RGB", (columns * (tile_px + _GAP_PX) + _GAP_PX, rows * (tile_px + _CAPTION_PX + _GAP_PX) + _GAP_PX), "white"
    )
    draw = ImageDraw.Draw(sheet)
    patch_of = np.arange(size_px) * grid // size_px  # (S,) patch row or column of each pixel
    for layer in range(layers):
        visible = kept[layer].reshape(grid, grid)[patch_of][:, patch_of, None]  # (S, S, 1)
        tile = (image * visible).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        x = _GAP_PX + layer % columns * (tile_px + _GAP_PX)
        y = _GAP_PX + layer // columns * (tile_px + _CAPTION_PX + _GAP_PX)
        draw.text((x, y), f"layer {layer}: {int(kept[layer].sum())}/{patches}", fill="black")
        sheet.paste(Image.fromarray(tile.astype(np.uint8)), (x, y + _CAPTION_PX))
    return sheet


def overlay_uri(image: NDArray[np.uint8], kept: NDArray[np.bool_]) -> str:
    """`overlay` as a PNG data URI."""
    stream = io.BytesIO()
    overlay(image, kept).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
