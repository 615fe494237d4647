"""The training stages: which parameters learn, from which loss, judged how. They know no loop and no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from models.augment import View, augment, whole
from models.config import TrainConfig
from models.exits import ExitsStage
from models.importance import impacts, keep_most
from models.labels import keep_labels
from models.losses import budget_loss, distillation_loss, gate_loss, group_of, task_loss
from models.macs import shape_of, used_macs
from models.merging import merged_forward, merged_macs
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT
from models.regularise import diversity_loss
from models.repeating import repeated_forward, repeated_macs
from models.selection import straight_through
from models.teacher import Teacher

GROUPS = 8  # groups of a joint batch, each with its own threshold
VALIDATED = (0.0, 0.15, 0.3, 0.45, 0.6)  # thresholds a joint run is judged at


class Stage(Protocol):
    """One way of training a PrunedViT."""

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """Optimiser groups; a group may carry `lr_scale`, its share of the learning rate."""
        ...

    def loss(self, model: PrunedViT, pixels: Tensor, labels: Tensor, context: Step) -> Tensor:
        """Scalar loss of a batch: source images (B, h, w, 3) uint8, labels (B,) int64."""
        ...

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """Figures on held-out training images; `accuracy` is the stage's own."""
        ...


class Step:
    """What one step of a run may know beside its batch."""

    def __init__(
        self, config: TrainConfig, rng: torch.Generator, number: int = 0, steps: int = 1, teacher: Teacher | None = None
    ) -> None:
        self.config = config
        self.rng = rng  # on the CPU, seeded by run and step
        self.number = number
        self.progress = number / steps  # share of all steps done
        self.teacher = teacher

    def view(self, model: PrunedViT, pixels: Tensor, labels: Tensor) -> View:
        """The batch, augmented."""
        return augment(pixels, labels, len(model.config.labels), self.config, self.rng)

    def size_px(self, model: PrunedViT) -> int:
        """The step's input size, drawn from the run's."""
        sizes = self.config.sizes_px or (model.config.image_size_px,)
        return sizes[int(torch.randint(len(sizes), (), generator=self.rng))]

    def draw(self, most: int) -> int:
        """A whole number from 0 to `most`."""
        return int(torch.randint(most + 1, (), generator=self.rng)) if most else 0

    def task_loss(self, logits: Tensor, view: View) -> Tensor:
        """Against the labels, and against the teacher where there is one."""
        loss = task_loss(logits, view.targets)
        if self.teacher is None:
            return loss
        share = self.config.distillation
        return (1 - share) * loss + share * distillation_loss(logits, self.teacher.answers(self.number, view))


class Setting(NamedTuple):
    """What a model is judged at."""

    size_px: int
    threshold: float = 0.0
    merged: int = 0  # patches a layer, without gates
    repeated: int = 0  # layers, without gates


class DenseStage:
    """Fine-tune the plain ViT, each layer slower than the one above it (layer-wise learning-rate decay).

    A rival that spends less without gates learns its whole range at once, too: each step draws how much less.
    """

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """All of the ViT's parameters, grouped by timm; gates, where there are any, rest."""
        return param_groups_layer_decay(model.vit, weight_decay=config.weight_decay, layer_decay=config.layer_decay)

    def loss(self, model: PrunedViT, pixels: Tensor, labels: Tensor, context: Step) -> Tensor:
        """Cross-entropy with the labels' and the teacher's answers."""
        view = context.view(model, pixels, labels)
        x = normalise(view.at(context.size_px(model)), model.config.mean, model.config.std)
        setting = Setting(x.shape[-1], merged=context.draw(context.config.merged))
        setting = setting._replace(repeated=context.draw(context.config.repeated))
        return context.task_loss(dense_logits(model, x, setting), view)

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """Top-1 accuracy at each of the run's sizes, and with less; `accuracy` is that of the model's own, in full."""
        settings = [Setting(size_px) for size_px in _sizes(model, config)]
        settings += [Setting(settings[0].size_px, merged=merged) for merged in range(1, config.merged + 1)]
        settings += [Setting(settings[0].size_px, repeated=layers) for layers in range(1, config.repeated + 1)]
        rows = judge(model, batches, settings)
        return {"accuracy": rows[0]["top1"], "points": rows}


class JointStage(DenseStage):
    """Gates and backbone learn together from the task, over the whole range of thresholds and input sizes at once.

    A part of each batch runs at threshold 0; the rest in groups, each with a threshold of its own. A gate's decision is
    a hard 0 or 1 whose gradient is that of its score (straight-through, 1308.3432), with logistic noise that fades. One
    global budget ties the threshold to the share of patches skipped. With `full_share` a step shows its images twice,
    in full as well, so that the full model learns in every step (the largest of a sandwich, 1903.05134).
    """

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """Slow backbone, fast gates and bypasses."""
        if not model.config.gated_layers:
            raise ValueError("the model has no gated layers to train")
        gates = {
            "params": [*model.gates.parameters(), *model.bypasses.parameters()],
            "lr_scale": config.gate_learning_rate / config.learning_rate,
            "weight_decay": 0.0,
        }
        return [*super().parameter_groups(model, config), *([gates] if gates["params"] else [])]

    def loss(self, model: PrunedViT, pixels: Tensor, labels: Tensor, context: Step) -> Tensor:
        """The task at every threshold, plus the budget."""
        config = context.config
        view = context.view(model, pixels, labels)
        mean, std, full_px = model.config.mean, model.config.std, model.config.image_size_px
        size_px, dense_share = context.size_px(model), config.dense_share
        x = normalise(view.at(size_px), mean, std)
        full = None
        if config.full_share:
            in_full = x if size_px == full_px else normalise(view.at(full_px), mean, std)
            full = context.task_loss(model.dense(in_full), view)
            dense_share = 0.0 if size_px == full_px else dense_share  # which was just shown
        threshold = self._thresholds(len(labels), dense_share, context).to(x.device)
        noise = config.gate_noise * max(0.0, 1 - 2 * context.progress)
        with last_input(model) as tokens:
            out = model(x, threshold, decide=straight_through(noise))
        loss = context.task_loss(out.logits, view)
        if full is not None:
            loss = (1 - config.full_share) * loss + config.full_share * full
        groups = min(GROUPS, len(labels))
        budget = budget_loss(out.kept[:, list(model.config.gated_layers)], threshold, groups)
        loss = loss + config.budget_weight * budget
        if config.diversity:
            loss = loss + config.diversity * diversity_loss(tokens[0][:, model.vit.num_prefix_tokens :])
        return loss

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """Accuracy and share skipped by the deterministic rule; `accuracy` is the mean over thresholds at full size."""
        first, *others = _sizes(model, config)
        settings = [Setting(first, threshold) for threshold in VALIDATED] + [Setting(size_px) for size_px in others]
        rows = judge(model, batches, settings)
        return {"accuracy": sum(row["top1"] for row in rows[: len(VALIDATED)]) / len(VALIDATED), "points": rows}

    @staticmethod
    def _thresholds(images: int, dense_share: float, context: Step) -> Tensor:
        """(B,) one threshold a group: 0 for some groups, the rest spread evenly, with a random offset, to the limit."""
        config, groups = context.config, min(GROUPS, images)
        ramp = min(1.0, context.progress / config.ramp_ratio) if config.ramp_ratio else 1.0
        dense = round(dense_share * groups)
        spread = (torch.arange(groups - dense) + torch.rand((), generator=context.rng)) / (groups - dense)
        thresholds = torch.cat([torch.zeros(dense), spread * config.threshold_max * ramp])
        return thresholds[group_of(images, groups)]


class GatesStage:
    """The write-up's method: the backbone frozen, each gate learns the cosine label of its layer's dense input.

    With `impact_skip` the label is Patch Slimming's: whether the change of a patch matters to the head.
    """

    def parameter_groups(self, model: PrunedViT, config: TrainConfig) -> list[dict[str, Any]]:
        """The gates' parameters; everything else is frozen here."""
        if not model.config.gated_layers:
            raise ValueError("the model has no gated layers to train")
        model.vit.requires_grad_(False)
        return [{"params": list(model.gates.parameters()), "weight_decay": config.weight_decay}]

    def loss(self, model: PrunedViT, pixels: Tensor, labels: Tensor, context: Step) -> Tensor:
        """Binary cross-entropy, averaged over gated layers."""
        images = context.view(model, pixels, labels).at(model.config.image_size_px)
        return gate_loss(*self._gates_and_labels(model, images, context.config))

    def validate(
        self, model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig
    ) -> dict[str, Any]:
        """The gates' agreement with the labels at score threshold 0.5, and the labels' keep share, per gated layer."""
        gated = len(model.config.gated_layers)
        agree, kept, total = torch.zeros(gated), torch.zeros(gated), 0
        for pixels, _ in batches:
            images = whole(pixels, model.config.image_size_px)
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
            gated, states = list(model.config.gated_layers), [each.float() for each in hidden]
            if config.impact_skip:
                keep = keep_most(impacts(model.vit.blocks, states, prefix)[gated], config.impact_skip)
            else:
                pairs = ((states[i][:, prefix:], states[i + 1][:, prefix:]) for i in gated)
                keep = torch.stack([keep_labels(*pair, config.cosine_threshold) for pair in pairs])
        return torch.stack([model.gate_logits(i, hidden[i]) for i in gated]), keep


def dense_logits(model: PrunedViT, x: Tensor, setting: Setting) -> Tensor:
    """The plain model's logits (B, classes), with as many tokens merged or attentions repeated as `setting` says."""
    if setting.merged:
        return merged_forward(model, x, setting.merged)
    return repeated_forward(model, x, setting.repeated) if setting.repeated else model.dense(x)


def judge(
    model: PrunedViT, batches: Iterable[tuple[Tensor, Tensor]], settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """Figures at each setting, by the deterministic rule; MACs against the dense model's own size."""
    gated, full = list(model.config.gated_layers), shape_of(model)
    right, skipped, macs, images = [0] * len(settings), [0.0] * len(settings), [0.0] * len(settings), 0
    for pixels, labels in batches:
        images += len(labels)
        for i, setting in enumerate(settings):
            x = normalise(whole(pixels, setting.size_px), model.config.mean, model.config.std)
            if setting.merged or setting.repeated:
                right[i] += int((dense_logits(model, x, setting).argmax(1) == labels).sum())
                each = merged_macs(full, setting.merged) if setting.merged else repeated_macs(full, setting.repeated)
                macs[i] += each * len(x)
                continue
            out = model(x, torch.full((len(x),), setting.threshold, device=x.device))
            right[i] += int((out.logits.argmax(1) == labels).sum())
            skipped[i] += float((~out.kept[:, gated]).float().mean((1, 2)).sum()) if gated else 0.0
            macs[i] += float(used_macs(shape_of(model, out.kept.shape[2]), out.kept, setting.threshold > 0).sum())
    return [
        {name: value for name, value in setting._asdict().items() if value or name in ("size_px", "threshold")}
        | {
            "top1": right[i] / images,
            "skipped": skipped[i] / images,
            "macs_ratio": macs[i] / images / full.dense,
        }
        for i, setting in enumerate(settings)
    ]


@contextmanager
def last_input(model: PrunedViT) -> Iterator[list[Tensor]]:
    """The tokens (B, N, C) that enter the last layer, appended as forwards run."""
    seen: list[Tensor] = []
    handle = model.vit.blocks[-1].norm1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _sizes(model: PrunedViT, config: TrainConfig) -> list[int]:
    """The input sizes that a run is judged at, the model's own first."""
    own = model.config.image_size_px
    return [own, *sorted({*config.sizes_px, *config.judged_px} - {own}, reverse=True)]


STAGES: dict[str, Stage] = {"dense": DenseStage(), "gates": GatesStage(), "joint": JointStage(), "exits": ExitsStage()}
