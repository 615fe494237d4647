"""Training sees images as evaluation renders them, each view drawn from a seed and the same at any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.augment import augment, whole
from models.config import TrainConfig
from models.preprocessing import resize, resize_crop

PLAIN = TrainConfig(stage="joint", shift_px=0, label_smoothing=0.0)
EVERYTHING = replace(PLAIN, shift_px=3, crop_min=0.3, colour=0.4)


def noise(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Random images (count, side, side, 3) uint8: the hardest to resize."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size_px", [112, 84, 56, 32, 28, 14])
def test_whole_images_are_pillows_to_two_levels(size_px: int) -> None:
    pixels = noise(3)
    expected = np.stack([resize_crop(Image.fromarray(image.numpy()), size_px) for image in pixels])
    found = whole(pixels, size_px).numpy()
    assert found.shape == (3, size_px, size_px, 3)
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize("box", [(3.0, 5.0, 27.0, 29.0), (0.5, 2.25, 20.0, 31.5)])
def test_a_box_inside_is_pillows_to_two_levels(box: tuple[float, float, float, float]) -> None:
    pixels = noise(1)
    image = Image.fromarray(pixels[0].numpy())
    expected = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC, box=box)).astype(np.float32)
    found = resize(pixels, torch.tensor([box]), 56)[0].numpy()
    assert np.abs(found - expected).max() <= 2


def test_a_mirrored_box_shows_the_mirrored_image() -> None:
    pixels = noise(2)
    forth, back = torch.tensor([[4.0, 2.0, 30.0, 25.0]] * 2), torch.tensor([[30.0, 2.0, 4.0, 25.0]] * 2)
    torch.testing.assert_close(resize(pixels, back, 40), resize(pixels, forth, 40).flip(2), atol=1, rtol=0)
    assert (resize(pixels, back, 40) - resize(pixels, forth, 40)).abs().max() > 50


def test_beyond_the_border_the_image_is_mirrored() -> None:
    pixels = noise(1)
    shifted = resize(pixels, torch.tensor([[-4.0, 0.0, 28.0, 32.0]]), 32)
    torch.testing.assert_close(shifted[0, :, 4:], pixels[0, :, :28].float(), atol=1, rtol=0)
    torch.testing.assert_close(shifted[0, :, :4], pixels[0, :, :4].float().flip(1), atol=1, rtol=0)


@pytest.mark.parametrize("kind", [{}, {"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_a_seed_gives_its_view_and_another_seed_another(kind: dict[str, float]) -> None:
    pixels, labels, config = noise(6), torch.arange(6), replace(EVERYTHING, **kind)  # type: ignore[arg-type]
    one, again, other = (augment(pixels, labels, 6, config, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.at(48), again.at(48))
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.at(48), other.at(48))


def test_without_randomness_a_view_is_the_image_or_its_mirror_image() -> None:
    pixels = noise(16)
    view = augment(pixels, torch.zeros(16, dtype=torch.int64), 2, PLAIN, seeded())
    images, upright = view.at(32), pixels.float()
    mirrored = [bool((images[i] - upright[i].flip(1)).abs().max() <= 1) for i in range(16)]
    same = [bool((images[i] - upright[i]).abs().max() <= 1) for i in range(16)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 16


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_targets_are_the_areas_shown(seed: int) -> None:
    """Image i is wholly of the grey level 10 i, so that each pixel tells which image it came from."""
    count, size_px = 4, 120
    pixels = (10 * torch.arange(count, dtype=torch.uint8))[:, None, None, None].expand(count, 32, 32, 3)
    view = augment(pixels, torch.arange(count), count, replace(PLAIN, cutmix=1.0), seeded(seed))
    images = view.at(size_px)
    torch.testing.assert_close(view.targets.sum(1), torch.ones(count))
    shown = torch.stack([(images[..., 0] == 10 * i).float().mean((1, 2)) for i in range(count)], 1)  # (B, classes)
    assert view.cut is not None
    assert 0 < view.targets[0, 0] < 1
    torch.testing.assert_close(shown, view.targets, atol=2.5 / size_px, rtol=0)  # the cut's edges fall on whole pixels


def test_mixup_targets_are_the_shares_mixed() -> None:
    pixels = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None, None].expand(2, 8, 8, 3)
    view = augment(pixels, torch.arange(2), 2, replace(PLAIN, mixup=1.0), seeded())
    torch.testing.assert_close(view.targets.sum(1), torch.ones(2))
    assert 0.01 < view.targets[0, 1] < 0.99
    torch.testing.assert_close(view.at(16)[:, 0, 0, 0], 200 * view.targets[:, 1], atol=1, rtol=0)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    config = replace(PLAIN, label_smoothing=0.2)
    targets = augment(noise(1), torch.tensor([1]), 4, config, seeded()).targets
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))


@pytest.mark.parametrize("kind", [{}, {"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_a_view_shows_the_same_crop_at_every_size(kind: dict[str, float]) -> None:
    ramp = torch.linspace(0, 1, 64)
    smooth = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64), ramp[:, None] * ramp], 2)
    pixels = (255 * smooth * torch.tensor([1.0, 0.5, 0.8, 0.2])[:, None, None, None]).round().byte()
    view = augment(pixels, torch.arange(4), 4, replace(EVERYTHING, **kind), seeded())  # type: ignore[arg-type]
    large, small = view.at(96), view.at(48)
    halved = large.reshape(4, 48, 2, 48, 2, 3).mean((2, 4))
    close = ((halved - small).abs() <= 4).float().mean()
    assert close > (0.9 if kind.get("cutmix") else 0.999)  # a pasted edge falls on another pixel
    other = augment(pixels, torch.arange(4), 4, replace(EVERYTHING, **kind), seeded(1)).at(48)  # type: ignore[arg-type]
    assert ((other - small).abs() <= 4).float().mean() < 0.9
