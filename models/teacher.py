"""A trained model that answers the views a student learns from. Its answers can be kept for several students.

Runs that draw the same views (the same images in the same order, cropped and mixed alike) ask the same questions; kept
answers spare them the teacher's forwards, as in TinyViT (2207.10666). It knows no loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.augment import View
from models.checkpoint import CheckpointError
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT


class Teacher:
    """Answers to a run's views, by step."""

    def __init__(self, model: PrunedViT, views: dict[str, Any], keeps: bool = False) -> None:
        """Know no answers yet.

        Args:
            model: in evaluation mode, where and in the precision it is to compute.
            views: what a step's view, and the answers to it, depend on, as JSON holds it.
            keeps: keep the answers to all steps, to be saved; else those to the last one, which may be asked for twice.
        """
        self.model, self.views, self.keeps = model, views, keeps
        self.loaded: dict[int, Tensor] = {}
        self.asked: dict[int, Tensor] = {}

    @torch.no_grad()
    def answers(self, step: int, view: View) -> Tensor:
        """Logits (B, classes) float16 for a step's view, at the teacher's own input size and threshold 0."""
        for known in (self.loaded, self.asked):
            if step in known:
                return known[step]
        config = self.model.config
        if not self.keeps:
            self.asked.clear()
        images = normalise(view.at(config.image_size_px), config.mean, config.std)
        self.asked[step] = self.model.dense(images).half()
        return self.asked[step]

    def save(self, file: Path) -> None:
        """Write the answers that were asked for: two bytes for each class, image and epoch."""
        partial = file.with_name(f"{file.name}.partial")
        torch.save({"views": self.views, "answers": self.asked}, partial)
        partial.replace(file)

    def load(self, file: Path) -> None:
        """Take the answers in `file`; steps it doesn't hold are asked for.

        Raises:
            CheckpointError: it is missing, or holds answers to other views or another teacher's.
        """
        try:
            kept = torch.load(file, map_location=next(self.model.parameters()).device, weights_only=True)
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing: write it with the same options and --answers-only") from None
        if kept["views"] != self.views:
            raise CheckpointError(f"{file} holds answers to other views: write another with --answers-only")
        self.loaded = kept["answers"]
