from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from service.explain import overlay, overlay_uri

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
