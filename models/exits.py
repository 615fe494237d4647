"""A rival: whole images idle. An image whose CLS token already gives a sure answer leaves; later layers skip it whole.

A linear head reads the CLS token after each of the model's `exits` layers. Those heads alone learn, on a backbone that
rests (as in shallow-deep networks, 1810.07052); the answer of the first that is sure enough counts. It knows no gates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.augment import whole
from models.config import TrainConfig
from models.macs import Shape, shape_of
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT

if TYPE_CHECKING:
    from models.stages import Step

SURES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # an image leaves above such a probability; 1: none does


class ExitsStage:
    """Train the heads of the exits on a backbone that rests, all of them on every image."""

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """The heads' parameters; everything else is frozen here."""
        if not model.config.exits:
            raise ValueError("the model has no exits to train: give --exits")
        model.vit.requires_grad_(False)
        return [{"params": list(model.exits.parameters()), "weight_decay": config.weight_decay}]

    def loss(self, model: PrunedViT, pixels: Tensor, labels: Tensor, context: Step) -> Tensor:
        """Cross-entropy with the labels' and the teacher's answers, the mean of all exits."""
        view = context.view(model, pixels, labels)
        with torch.no_grad():
            x = normalise(view.at(model.config.image_size_px), model.config.mean, model.config.std)
            seen, _ = exit_tokens(model, x)
        logits = [head(seen[:, i]) for i, head in enumerate(model.exits.values())]
        return torch.stack([context.task_loss(each, view) for each in logits]).mean()

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """Accuracy and cost at each of SURES; `accuracy` is that of the first exit alone."""
        costs = torch.tensor(exit_macs(shape_of(model), model.config.exits), dtype=torch.float64)
        right, macs, first, images = [0] * len(SURES), [0.0] * len(SURES), 0, 0
        for pixels, labels in batches:
            x = normalise(whole(pixels, model.config.image_size_px), model.config.mean, model.config.std)
            answers = exit_logits(model, x).float()  # (B, exits + 1, classes)
            first += int((answers[:, 0].argmax(1) == labels).sum())
            images += len(labels)
            for i, sure in enumerate(SURES):
                left = leaves_at(answers, sure)
                answer = answers.argmax(2).gather(1, left[:, None])[:, 0]
                right[i] += int((answer == labels).sum())
                macs[i] += float(costs[left.cpu()].sum())
        shared = {"size_px": model.config.image_size_px, "threshold": 0.0, "skipped": 0.0}
        dense = shape_of(model).dense
        points = [
            shared | {"sure": sure, "top1": hits / images, "macs_ratio": used / images / dense}
            for sure, hits, used in zip(SURES, right, macs, strict=True)
        ]
        return {"accuracy": first / images, "points": points}


def exit_tokens(model: PrunedViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images (B, 3, H, W) -> normed CLS tokens after the exits (B, exits, C), the model's logits."""
    found = model.trajectory(images)
    tokens = [model.vit.norm(found.hidden[layer + 1][:, 0]) for layer in model.config.exits]
    return torch.stack(tokens, 1), found.logits


def exit_logits(model: PrunedViT, images: Tensor) -> Tensor:
    """Normalised images (B, 3, H, W) -> (B, exits + 1, classes): every exit's answer, the model's own last."""
    seen, logits = exit_tokens(model, images)
    return torch.stack([*(head(seen[:, i]) for i, head in enumerate(model.exits.values())), logits], 1)


def leaves_at(answers: Tensor, sure: float) -> Tensor:
    """Where an image leaves: logits (B, exits + 1, classes) -> (B,) int64, the first place whose answer is sure."""
    enough = answers.softmax(2).amax(2) > sure
    enough[:, -1] = True
    return enough.int().argmax(1)


def exit_macs(shape: Shape, exits: tuple[int, ...]) -> list[int]:
    """MACs of an image that leaves at each of the `exits`, and of one that stays; every head asked is counted."""
    head, layers = shape.width * shape.classes, range(shape.layers)
    spent = [shape.layer(layer).at(shape.patches) for layer in layers]
    left = [shape.fixed + asked * head + sum(spent[: layer + 1]) for asked, layer in enumerate(exits)]
    return [*left, shape.dense + len(exits) * head]
