"""The training stages: which parameters learn, from which loss, judged how. They know no loop and no files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from models.config import TrainConfig
from models.labels import keep_labels
from models.losses import gate_loss, task_loss
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT


class Stage(Protocol):
    """One way of training a PrunedViT."""

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """Optimiser groups; a group may carry `lr_scale`, its share of the learning rate."""
        ...

    def loss(self, model: PrunedViT, images: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
        """Scalar loss of a batch: images (B, H, W, 3) uint8, labels (B,) int64."""
        ...

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """Figures on held-out training images; `accuracy` is the stage's own."""
        ...


class DenseStage:
    """Fine-tune the plain ViT, each layer slower than the one above it (layer-wise learning-rate decay)."""

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """All of the ViT's parameters, grouped by timm; gates, where there are any, rest."""
        return param_groups_layer_decay(model.vit, weight_decay=config.weight_decay, layer_decay=config.layer_decay)

    def loss(self, model: PrunedViT, images: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
        """Cross-entropy with label smoothing."""
        x = normalise(images, model.config.mean, model.config.std)
        return task_loss(model.vit(x), labels, config.label_smoothing)

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """Top-1 accuracy."""
        right = total = 0
        for images, labels in batches:
            x = normalise(images, model.config.mean, model.config.std)
            right += int((model.vit(x).argmax(1) == labels).sum())
            total += len(labels)
        return {"accuracy": right / total}


class GatesStage:
    """The write-up's method: the backbone frozen, each gate learns the cosine label of its layer's dense input."""

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """The gates' parameters; everything else is frozen here."""
        if not model.config.gated_layers:
            raise ValueError("the model has no gated layers to train")
        model.vit.requires_grad_(False)
        return [{"params": list(model.gates.parameters()), "weight_decay": config.weight_decay}]

    def loss(self, model: PrunedViT, images: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
        """Binary cross-entropy, averaged over gated layers."""
        logits, keep = self._gates_and_labels(model, images, config)
        return gate_loss(logits, keep)

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """The gates' agreement with the labels at score threshold 0.5, and the labels' keep share, per gated layer."""
        gated = len(model.config.gated_layers)
        agree, kept, total = torch.zeros(gated), torch.zeros(gated), 0
        for images, _ in batches:
            logits, keep = self._gates_and_labels(model, images, config)
            agree += ((logits > 0) == keep).sum((1, 2)).cpu()
            kept += keep.sum((1, 2)).cpu()
            total += keep[0].numel()
        return {
            "accuracy": float((agree / total).mean()),
            "gate_accuracy": [round(value, 4) for value in (agree / total).tolist()],
            "label_keep": [round(value, 4) for value in (kept / total).tolist()],
        }

    def _gates_and_labels(self, model: PrunedViT, images: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
        """Gate logits and keep labels of every gated layer: (gated, B, P) each."""
        prefix = model.vit.num_prefix_tokens
        with torch.no_grad():
            hidden = model.trajectory(normalise(images, model.config.mean, model.config.std)).hidden
            keep = [
                keep_labels(hidden[i][:, prefix:].float(), hidden[i + 1][:, prefix:].float(), config.cosine_threshold)
                for i in model.config.gated_layers
            ]
        logits = [model.gate_logits(i, hidden[i]) for i in model.config.gated_layers]
        return torch.stack(logits), torch.stack(keep)


STAGES: dict[str, Stage] = {"dense": DenseStage(), "gates": GatesStage()}
