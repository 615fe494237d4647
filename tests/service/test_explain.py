from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from service.explain import AGAIN, GONE, KEPT, classes, depth_map, draw, overlay, overlay_uri, patch_states

WHITE = np.full((28, 28, 3), 255, np.uint8)


def test_skipped_patches_are_black_and_kept_ones_untouched() -> None:
    kept = np.ones((1, 4), np.bool_)
    kept[0, 1] = False  # upper right
    sheet = np.asarray(overlay(WHITE, kept))
    tile = sheet[18 : 18 + 112, 4 : 4 + 112]
    assert (tile[:56, 56:] == 0).all()
    assert (tile[:, :56] == 255).all()
    assert (tile[56:] == 255).all()


def test_there_is_a_tile_for_each_layer_large_enough_to_read() -> None:
    sheet = overlay(WHITE, np.zeros((12, 16), np.bool_))
    assert sheet.width >= 4 * 112
    assert sheet.height >= 3 * 112
    black = (np.asarray(sheet) == 0).all(axis=-1).sum()
    assert black >= 12 * 112 * 112


def test_the_uri_is_a_png() -> None:
    head, _, body = overlay_uri(WHITE, np.ones((2, 4), np.bool_)).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).format == "PNG"


def test_a_mask_that_is_no_square_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="5 patches"):
        overlay(WHITE, np.ones((1, 5), np.bool_))


def test_an_idle_patch_is_told_from_one_that_idles_for_good() -> None:
    kept = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]], np.bool_)
    states = patch_states(kept, (1, 2))
    assert states.tolist() == [[KEPT] * 4, [GONE, AGAIN, KEPT, KEPT], [GONE, KEPT, GONE, KEPT], [KEPT] * 4]
    assert patch_states(kept, (1, 2, 3))[2].tolist() == [AGAIN, KEPT, AGAIN, KEPT]


def test_classes_tint_what_comes_back_and_blacken_what_does_not() -> None:
    kept = np.array([[0, 0, 1, 1], [0, 1, 1, 1]], np.bool_)
    sheet = np.asarray(classes(np.full((28, 28, 3), 100, np.uint8), kept, (0, 1)))
    tile = sheet[18 : 18 + 112, 4 : 4 + 112]
    assert (tile[:56, :56] == 0).all()
    assert (tile[:56, 56:] == [30 + 85, 30 + 22, 30 + 94]).all()
    assert (tile[56:] == 100).all()


def test_the_depth_map_is_brightest_where_every_gated_layer_computes() -> None:
    kept = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]], np.bool_)
    sheet = np.asarray(depth_map(WHITE, kept, (1, 2)))
    image, tile = sheet[18:130, 4:116], sheet[18:130, 120:232]
    assert (image == 255).all()
    assert (tile[:56, :56] == [68, 1, 84]).all()  # no layer
    assert (tile[:56, 56:] == [253, 231, 37]).all()  # both
    assert (tile[56:] == [33, 144, 141]).all()  # one of two


@pytest.mark.parametrize("size_px", [7, 112, 518])
def test_pictures_stay_within_bounds_whatever_the_models_size(size_px: int) -> None:
    image = np.zeros((size_px, size_px, 3), np.uint8)
    kept = np.ones((24, 49), np.bool_)
    for style in ("classes", "overlay", "depth"):
        drawn = Image.open(io.BytesIO(draw(style, image, kept, range(24))))
        assert min(drawn.size) > 112
        assert max(drawn.size) <= 5 * 244
