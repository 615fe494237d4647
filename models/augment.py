"""Random views of a training batch, drawn once and rendered at any input size.

A student and its teacher, or two input sizes, see the same crop, colours and mixture. Everything is drawn from the
generator that the caller seeds, so that a resumed run sees the same images. It knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from models.config import TrainConfig
from models.preprocessing import resize


@dataclass(frozen=True)
class View:
    """One batch as it is shown to models."""

    pixels: Tensor  # (B, h, w, 3) uint8, the source images
    targets: Tensor  # (B, classes) float, each row sums to 1
    boxes: Tensor  # (B, 4) float: left, top, right, bottom in source pixels; left > right mirrors
    colour: Tensor  # (B, 3) float: factors of brightness, contrast and saturation
    mixup: float = 1.0  # an image's own share in its mixture with the batch's reverse
    cut: tuple[float, float, float, float] | None = None  # top, bottom, left, right shares, pasted from the reverse

    def at(self, size_px: int) -> Tensor:
        """RGB (B, size_px, size_px, 3) float in [0, 255], ready for `normalise`."""
        images = resize(self.pixels, self.boxes, size_px)
        images = _coloured(images, self.colour)
        if self.cut is not None:
            top, bottom, left, right = (round(share * size_px) for share in self.cut)
            images = images.clone()
            images[:, top:bottom, left:right] = images.flip(0)[:, top:bottom, left:right]
        elif self.mixup < 1:
            images = self.mixup * images + (1 - self.mixup) * images.flip(0)
        return images


def augment(pixels: Tensor, labels: Tensor, classes: int, config: TrainConfig, rng: torch.Generator) -> View:
    """Draw a view of `pixels` (B, h, w, 3) uint8 with `labels` (B,) int64; `rng` is a CPU generator."""
    B, height, width, _ = pixels.shape
    area = config.crop_min + (1 - config.crop_min) * torch.rand(B, generator=rng)
    ratio = torch.exp((torch.rand(B, generator=rng) - 0.5) * 2 * 0.2876 * (config.crop_min < 1))  # log(4 / 3)
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # (B, 2) shares: width, height
    extent = sides * torch.tensor([width, height])
    room = torch.tensor([width, height]) - extent
    corner = torch.rand(B, 2, generator=rng) * room
    if config.shift_px:
        corner = corner + torch.randint(-config.shift_px, config.shift_px + 1, (B, 2), generator=rng)
    boxes = torch.cat([corner, corner + extent], 1)
    mirrored = torch.rand(B, generator=rng) < 0.5
    boxes[mirrored] = boxes[mirrored][:, [2, 1, 0, 3]]
    colour = 1 + config.colour * (2 * torch.rand(B, 3, generator=rng) - 1)
    targets = _smoothed(labels, classes, config.label_smoothing)
    device = pixels.device
    view = View(pixels, targets, boxes.to(device), colour.to(device))
    return _mixed(view, config, rng)


def whole(pixels: Tensor, size_px: int) -> Tensor:
    """The images (B, h, w, 3) uint8 as they are evaluated: (B, size_px, size_px, 3) float in [0, 255]."""
    B, height, width, _ = pixels.shape
    box = torch.tensor([0.0, 0.0, width, height], device=pixels.device)
    return resize(pixels, box.expand(B, 4), size_px)


def _smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def _mixed(view: View, config: TrainConfig, rng: torch.Generator) -> View:
    """CutMix (1905.04899) or mixup (1710.09412) with the batch reversed; with both on, one or the other, evenly."""
    kinds = [kind for kind in ("cutmix", "mixup") if getattr(config, kind)]
    if not kinds:
        return view
    kind = kinds[int(torch.rand((), generator=rng) * len(kinds))]
    share = _beta(getattr(config, kind), rng)
    cut = None
    if kind == "cutmix":
        side = (1 - share) ** 0.5
        middle = torch.rand(2, generator=rng).tolist()
        (top, bottom), (left, right) = ((max(0.0, m - side / 2), min(1.0, m + side / 2)) for m in middle)
        cut, share = (top, bottom, left, right), 1 - (bottom - top) * (right - left)
    targets = share * view.targets + (1 - share) * view.targets.flip(0)
    return View(view.pixels, targets, view.boxes, view.colour, share, cut)


def _beta(alpha: float, rng: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), by inverting its distribution function on a grid (torch's takes no generator)."""
    grid = torch.linspace(1e-4, 1 - 1e-4, 2048)
    mass = Beta(alpha, alpha).log_prob(grid).exp().cumsum(0)
    return float(grid[torch.searchsorted(mass / mass[-1], torch.rand(1, generator=rng)).clamp(max=2047)])


def _coloured(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation: images (B, S, S, 3) in [0, 255], factors (B, 3)."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    grey = images.mean(3, keepdim=True)
    return (grey + saturation * (images - grey)).clamp(0, 255)
