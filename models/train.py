"""Train a model: `--stage dense` fine-tunes a timm ViT, `--stage gates` trains its gates on cosine labels.

    python -m models.train --stage dense --data DATA --init BACKBONE.safetensors --image-size 112 --out runs/dense
    python -m models.train --stage gates --data DATA --init runs/dense --out runs/gates

DATA is a folder of parquet files, an image folder or a hub name. A run that was stopped goes on from its last
checkpoint when the same command is given again. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models import checkpoint
from models.checkpoint import CheckpointError
from models.config import PrunedViTConfig, TrainConfig
from models.data import Augment, DataError, LabelledImages, epoch_order, load_images, source_name, split_holdout
from models.pruned_vit import PrunedViT, UnsupportedModel, build
from models.stages import STAGES

STATE = "state.pt"  # optimiser and progress, beside the checkpoint; deleted by nobody, needed only to resume
SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class Machine:
    """Where to compute and how precisely."""

    device: str
    dtype: torch.dtype | None  # autocast type; None computes in float32

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        return torch.autocast(self.device, self.dtype or torch.bfloat16, enabled=self.dtype is not None)


def pick_machine(device: str, precision: str) -> Machine:
    """`auto` takes the GPU where there is one, and half precision where the hardware has it (else it is slower)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    named = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return Machine(device, named[precision])
    if device == "cuda":
        return Machine(device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    fast = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return Machine(device, torch.bfloat16 if fast.get("avx512_bf16") or fast.get("amx_bf16") else None)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(steps * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass
class Progress:
    """How far a run has come: what resuming needs besides weights and optimiser."""

    epoch: int = 0
    images: int = 0  # of this epoch
    history: tuple[dict[str, Any], ...] = ()  # one entry an epoch


class Run:
    """One training run in its folder: the loop, its checkpoints, its log."""

    def __init__(self, model: PrunedViT, config: TrainConfig, machine: Machine, out: Path, workers: int) -> None:
        self.model = model.to(machine.device)
        self.config, self.machine, self.out, self.workers = config, machine, out, workers
        self.stage = STAGES[config.stage]
        self.optimiser = torch.optim.AdamW(self.stage.parameter_groups(model, config), lr=config.learning_rate)
        self.scaler = torch.amp.GradScaler(machine.device, enabled=machine.dtype is torch.float16)
        self.progress = Progress()

    def resume(self) -> bool:
        """Go on from the folder's last state, if it has one of the same run; CheckpointError if it's another's."""
        if not (self.out / STATE).exists():
            return False
        state = torch.load(self.out / STATE, map_location=self.machine.device, weights_only=True)
        if state["config"] != asdict(self.config):
            raise CheckpointError(f"{self.out} holds a run with other settings: give another --out or delete it")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"] | {"history": tuple(state["progress"]["history"])})
        return True

    def save(self) -> None:
        """Write the checkpoint and the state to resume from."""
        checkpoint.save(self.model, self.out)
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress) | {"history": list(self.progress.history)},
        }
        partial = self.out / f"{STATE}.partial"
        torch.save(state, partial)
        partial.replace(self.out / STATE)

    def fit(self, training: LabelledImages, heldout: LabelledImages) -> None:
        """Train to the last epoch, validating after each."""
        while self.progress.epoch < self.config.epochs:
            loss = self._epoch(training)
            figures = self._validate(heldout) if len(heldout) else {}
            entry = {"epoch": self.progress.epoch, "loss": loss} | figures
            print(json.dumps(entry), file=sys.stderr, flush=True)
            self.progress = Progress(self.progress.epoch + 1, 0, (*self.progress.history, entry))
            self.save()

    def _epoch(self, training: LabelledImages) -> float:
        config, progress = self.config, self.progress
        order = epoch_order(len(training), config.seed, progress.epoch)
        steps_an_epoch = math.ceil(len(order) / config.batch_size)
        images = training.augmented(Augment(config.seed, progress.epoch, config.shift_px))
        batches = images.batches(config.batch_size, order[progress.images :], self.workers)
        self.model.train()
        saved, mean_loss = time.monotonic(), 0.0
        title = f"epoch {progress.epoch + 1}/{config.epochs}"
        with tqdm(total=len(order), initial=progress.images, unit="img", desc=title, mininterval=2) as bar:
            for pixels, labels in batches:
                step = progress.epoch * steps_an_epoch + progress.images // config.batch_size
                loss = self._step(pixels, labels, learning_rate(step, config.epochs * steps_an_epoch, config))
                mean_loss = loss if mean_loss == 0.0 else 0.98 * mean_loss + 0.02 * loss
                progress.images += len(labels)
                bar.update(len(labels))
                bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        return mean_loss

    def _step(self, pixels: Tensor, labels: Tensor, rate: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        with self.machine.autocast():
            loss = self.stage.loss(self.model, *self._move(pixels, labels), self.config)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value}: lower --learning-rate or use --precision fp32")
        return value

    @torch.inference_mode()
    def _validate(self, heldout: LabelledImages) -> dict[str, Any]:
        self.model.eval()
        batches: Iterator[tuple[Tensor, Tensor]] = (
            self._move(*batch) for batch in tqdm(heldout.batches(self.config.batch_size), desc="held out", leave=False)
        )
        with self.machine.autocast():
            return self.stage.validate(self.model, batches, self.config)

    def _move(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels.to(self.machine.device), labels.to(self.machine.device)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; every TrainConfig field is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, state and log")
    parser.add_argument("--init", type=Path, help="checkpoint folder or timm safetensors file; without: random weights")
    parser.add_argument("--model", default="vit_small_patch14_dinov2", help="timm model name")
    parser.add_argument("--image-size", type=int, default=112, help="side of the input, px")
    parser.add_argument("--attention", choices=["full_context", "kept_only"], default="full_context")
    parser.add_argument("--gated-layers", help="comma-separated, from 0; default: all of them for the gates stage")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; 0: none of their own")
    for field in fields(TrainConfig):
        if field.name != "stage":
            kind = {"int": int, "float": float}[str(field.type)]
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
    return parser.parse_args(argv)


def model_for(options: argparse.Namespace, labels: tuple[str, ...]) -> PrunedViT:
    """The model to train, initialised; a checkpoint folder as --init brings its own config along."""
    config = PrunedViTConfig(options.model, options.image_size, labels, options.attention)
    if options.init is not None and (options.init / checkpoint.CONFIG).exists():
        stored = json.loads((options.init / checkpoint.CONFIG).read_text())
        config = replace(PrunedViTConfig.from_json(stored), labels=labels, attention=options.attention)
    if options.stage == "gates":
        every = range(len(build(config).vit.blocks))
        gated = tuple(map(int, options.gated_layers.split(","))) if options.gated_layers else tuple(every)
        config = replace(config, gated_layers=gated)
    torch.manual_seed(options.seed)
    model = build(config, drop_path=options.drop_path if options.stage == "dense" else 0.0)
    if options.init is not None:
        fresh = checkpoint.initialise(model, options.init, gates=options.stage != "gates")  # gates learn from scratch
        print(f"started from {options.init}, {len(fresh)} tensors new: {', '.join(fresh[:4])} ...", file=sys.stderr)
    return model


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Run or resume the training that the options describe and return its summary, also written to `train.json`."""
    config = TrainConfig(**{field.name: getattr(options, field.name) for field in fields(TrainConfig)})
    images = load_images(options.data, "train", options.image_size)
    model = model_for(options, images.labels)
    training, heldout = split_holdout(replace(images, size_px=model.config.image_size_px), config.holdout_ratio)
    if config.max_images:
        training = training.select(epoch_order(len(training), config.seed, 0)[: config.max_images])
    run = Run(model, config, pick_machine(options.device, options.precision), options.out, options.workers)
    if run.resume():
        done = run.progress
        print(f"resumed at epoch {done.epoch + 1}, {done.images} images in", file=sys.stderr)
    started = time.monotonic()
    run.fit(training, heldout)
    summary = {
        "config": asdict(config),
        "data": source_name(options.data),
        "init": options.init and options.init.name,
        "device": run.machine.device,
        "precision": str(run.machine.dtype or torch.float32),
        "training_images": len(training),
        "wall_s": round(time.monotonic() - started, 1),  # of this call: a resumed run took longer in all
        "history": run.progress.history,
    }
    (options.out / "train.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        summary = train(options)
    except (DataError, CheckpointError, UnsupportedModel, FloatingPointError, ValueError) as error:
        print(f"models.train: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
