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

    def __init__(self, model: PrunedViT, views: dict[str, Any]) -> None:
        """Ask `model` every time.

        Args:
            model: in evaluation mode, where and in the precision it is to compute.
            views: what a step's view, and the answers to it, depend on, as JSON holds it.
        """
        self.model, self.views = model, views
        self.known: dict[int, Tensor] = {}
        self.keeps = False

    @torch.no_grad()
    def answers(self, step: int, view: View) -> Tensor:
        """Logits (B, classes) float16 for a step's view, at the teacher's own input size and threshold 0."""
        if step in self.known:
            return self.known[step]
        config = self.model.config
        found = self.model.dense(normalise(view.at(config.image_size_px), config.mean, config.std)).half()
        if not self.keeps:
            self.known.clear()  # all but a step's own, which may be asked for twice
        self.known[step] = found
        return found

    def save(self, file: Path) -> None:
        """Write the answers there are: two bytes for each class, image and epoch."""
        partial = file.with_name(f"{file.name}.partial")
        torch.save({"views": self.views, "answers": self.known}, partial)
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
        self.known, self.keeps = kept["answers"], True
