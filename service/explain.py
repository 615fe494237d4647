"""Which patches were computed, as a picture: a tile for each layer, or how many layers computed each patch. Pure."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Style = Literal["classes", "overlay", "depth"]

KEPT, AGAIN, GONE = 0, 1, 2  # a patch in a layer: computed; idle, computed again later; idle from here on
_AGAIN_TINT = np.array([190.0, 50.0, 210.0])  # RGB of patches in state AGAIN: a colour that photographs seldom have
# Viridis at nine equal steps, dark to bright; in between it's linear.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
        (170, 220, 50), (253, 231, 37),
    ],
    np.float64,
)  # fmt: skip
_MIN_TILE_PX, _MAX_TILE_PX = 112, 224  # a smaller tile is enlarged by a whole factor, a larger one reduced
_CAPTION_PX = 14
_GAP_PX = 4
_SCALE_PX = 16  # width of the depth map's colour scale


def patch_states(kept: NDArray[np.bool_], gated_layers: Sequence[int]) -> NDArray[np.uint8]:
    """`kept` (L, P) -> (L, P): KEPT, AGAIN (idle, computed by a later gated layer) or GONE (idle to the end).

    Layers without a gate compute every patch and so say nothing: they are KEPT, and bring no patch back.
    """
    states = np.full(kept.shape, KEPT, np.uint8)
    later = np.zeros(kept.shape[1], np.bool_)  # (P,) computed by a gated layer after this one
    for layer in sorted(gated_layers, reverse=True):
        states[layer] = np.select([kept[layer], later], [KEPT, AGAIN], GONE)
        later |= kept[layer]
    return states


def shade(image: NDArray[np.uint8], states: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (S, S, 3) with its patches (P,) in state AGAIN dark and tinted, and in state GONE black."""
    state = _per_pixel(states, len(image))[..., None]  # (S, S, 1)
    return np.select([state == KEPT, state == AGAIN], [image, 0.3 * image + 0.45 * _AGAIN_TINT], 0).astype(np.uint8)


def overlay(image: NDArray[np.uint8], kept: NDArray[np.bool_]) -> Image.Image:
    """A tile for each layer: `image` (S, S, 3), the model's own crop, with patches outside `kept` (L, P) black."""
    return _sheet(image, np.where(kept, KEPT, GONE).astype(np.uint8), _captions(kept, range(len(kept))))


def classes(image: NDArray[np.uint8], kept: NDArray[np.bool_], gated_layers: Sequence[int]) -> Image.Image:
    """A tile for each layer: idle patches are tinted if a later layer computes them again, and black if none does."""
    return _sheet(image, patch_states(kept, gated_layers), _captions(kept, gated_layers))


def depth_map(image: NDArray[np.uint8], kept: NDArray[np.bool_], gated_layers: Sequence[int]) -> Image.Image:
    """The image beside how many of the gated layers computed each patch, from none (dark) to all (bright)."""
    depth = kept[list(gated_layers)].sum(axis=0)  # (P,)
    left = _fit(image)
    right = _fit(_viridis(_per_pixel(depth, len(image)) / len(gated_layers)))
    tile_px = left.width
    sheet = Image.new("RGB", (2 * tile_px + _SCALE_PX + 4 * _GAP_PX, tile_px + _CAPTION_PX + 2 * _GAP_PX), "white")
    y = _GAP_PX + _CAPTION_PX
    sheet.paste(left, (_GAP_PX, y))
    sheet.paste(right, (2 * _GAP_PX + tile_px, y))
    scale = np.repeat(np.linspace(1, 0, tile_px)[:, None], _SCALE_PX, axis=1)
    sheet.paste(Image.fromarray(_viridis(scale)), (3 * _GAP_PX + 2 * tile_px, y))
    caption = f"0 (dark) to {len(gated_layers)} layers, mean {depth.mean():.1f}"
    ImageDraw.Draw(sheet).text((2 * _GAP_PX + tile_px, _GAP_PX), caption, fill="black")
    return sheet


def draw(style: Style, image: NDArray[np.uint8], kept: NDArray[np.bool_], gated_layers: Sequence[int]) -> bytes:
    """The picture of this style as a PNG file; its size depends on the model alone, never on what was uploaded."""
    if style == "overlay":
        return _png(overlay(image, kept))
    return _png({"classes": classes, "depth": depth_map}[style](image, kept, gated_layers))


def overlay_uri(image: NDArray[np.uint8], kept: NDArray[np.bool_]) -> str:
    """`overlay` as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(_png(overlay(image, kept))).decode("ascii")


def _sheet(image: NDArray[np.uint8], states: NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """Tiles of the image in the states (L, P), each under its caption, in rows that make about a square."""
    tiles = [_fit(shade(image, layer)) for layer in states]
    tile_px = tiles[0].width
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = -(-len(tiles) // columns)
    size = columns * (tile_px + _GAP_PX) + _GAP_PX, rows * (tile_px + _CAPTION_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = _GAP_PX + index % columns * (tile_px + _GAP_PX)
        y = _GAP_PX + index // columns * (tile_px + _CAPTION_PX + _GAP_PX)
        pen.text((x, y), caption, fill="black")
        sheet.paste(tile, (x, y + _CAPTION_PX))
    return sheet


def _captions(kept: NDArray[np.bool_], gated_layers: Sequence[int]) -> list[str]:
    L, P = kept.shape
    return [
        f"layer {layer}: " + (f"{int(kept[layer].sum())}/{P}" if layer in gated_layers else "no gate")
        for layer in range(L)
    ]


def _per_pixel(values: NDArray[np.integer], size_px: int) -> NDArray[np.integer]:
    """Values of a square grid of patches (P,) for each pixel (S, S); ValueError if P is no square number."""
    grid = math.isqrt(len(values))
    if grid * grid != len(values):
        raise ValueError(f"{len(values)} patches are no square grid")
    patch_of = np.arange(size_px) * grid // size_px  # (S,) patch row or column of each pixel
    return values.reshape(grid, grid)[patch_of][:, patch_of]


def _fit(pixels: NDArray[np.uint8]) -> Image.Image:
    enlarge = max(1, -(-_MIN_TILE_PX // len(pixels)))
    tile = Image.fromarray(pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1))
    return tile if tile.width <= _MAX_TILE_PX else tile.resize((_MAX_TILE_PX, _MAX_TILE_PX), Image.Resampling.BOX)


def _viridis(share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (..., 3) of shares (...) in [0, 1]."""
    steps = np.linspace(0, 1, len(_VIRIDIS))
    return np.stack([np.interp(share, steps, channel) for channel in _VIRIDIS.T], axis=-1).round().astype(np.uint8)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
