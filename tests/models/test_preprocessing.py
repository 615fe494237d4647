"""Training, evaluation and the server see the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Image as HubImage
from PIL import Image

from models import preprocessing as trained
from service import preprocess as served
from tests.images import good_images

GOOD = good_images()
LIMITS = served.ImageLimits(max_bytes=10_000_000, max_pixels=10_000_000)


@pytest.mark.parametrize("name", GOOD)
def test_a_file_of_any_kind_becomes_the_same_pixels_in_a_data_set_and_in_a_request(name: str) -> None:
    in_data_set = HubImage().decode_example({"bytes": GOOD[name], "path": None})
    ours = trained.resize_crop(trained.to_rgb(in_data_set), 56)
    theirs = served.resize_crop(served.decode(GOOD[name], LIMITS), 56)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(32, 32), (640, 480), (31, 97), (200, 113), (1, 900), (112, 112)])
@pytest.mark.parametrize("size_px", [112, 84])
def test_the_servers_pixels_are_the_models_pixels(size: tuple[int, int], size_px: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours, theirs = trained.resize_crop(image, size_px), served.resize_crop(image, size_px)
    assert ours.shape == (size_px, size_px, 3)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)


def test_normalise_is_torchvisions() -> None:
    from torchvision.transforms import v2

    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = v2.Normalize(mean, std)(images.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(trained.normalise(images, mean, std), expected, atol=1e-5, rtol=0)
