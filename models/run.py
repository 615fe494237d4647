"""One training run in its folder: the loop, its checkpoints, its log. It knows no command line and no files of data."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models import checkpoint
from models.checkpoint import CheckpointError
from models.config import PrunedViTConfig, TrainConfig
from models.data import Images, epoch_order
from models.pruned_vit import PrunedViT
from models.stages import STAGES, Step
from models.teacher import Teacher

STATE = "state.pt"  # optimiser and progress, beside the checkpoint; deleted by nobody, needed only to resume
SAVE_EVERY_S = 120.0
CHECK_EVERY = 16  # steps between looks at the loss


@dataclass(frozen=True)
class Machine:
    """Where to compute and how precisely."""

    device: str
    dtype: torch.dtype  # of the computing; parameters and optimiser stay float32
    compiled: bool = False  # layers go through torch.compile


def pick_machine(device: str, precision: str, compiled: bool = False) -> Machine:
    """On a device of torch's; `auto` takes bfloat16 where the hardware has it (elsewhere it is slower)."""
    if precision != "auto":
        return Machine(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], compiled)
    if device.startswith("cuda"):
        return Machine(device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32, compiled)
    fast = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    half = fast.get("avx512_bf16") or fast.get("amx_bf16")
    return Machine(device, torch.bfloat16 if half else torch.float32, compiled)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(steps * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def step_rng(config: TrainConfig, step: int) -> torch.Generator:
    """What a step's view is drawn from: a function of the run's seed and the step alone."""
    return torch.Generator().manual_seed(config.seed * 1_000_003 + step)


@dataclass
class Progress:
    """How far a run has come: what resuming needs besides weights and optimiser."""

    epoch: int = 0
    images: int = 0  # of this epoch
    history: tuple[dict[str, Any], ...] = ()  # one entry an epoch
    wall_s: float = 0.0  # that it trained, in all its calls
    loss: float = 0.0  # of this epoch's steps, summed
    steps: int = 0  # of this epoch


class MeanLoss:
    """The mean of an epoch's losses, read rarely: reading waits for the device."""

    def __init__(self, total: float = 0.0, steps: int = 0) -> None:
        self.total: Tensor | float = total
        self.steps = steps

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        self.total, self.steps = self.total + loss, self.steps + 1

    def check(self) -> float:
        """The mean so far; FloatingPointError says what to do if a step's loss wasn't finite."""
        value = float(self.total) / max(1, self.steps)
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value}: lower --learning-rate or use --precision fp32")
        return value


class Run:
    """One training run in its folder: the loop, its checkpoints, its log."""

    def __init__(
        self,
        model: PrunedViT,
        config: TrainConfig,
        machine: Machine,
        out: Path,
        teacher: Teacher | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """`origin`: what else makes it this run and no other, as JSON holds it: its data, teacher, start."""
        self.model = model.to(machine.device)  # float32, what the optimiser changes and checkpoints hold
        self.teacher = teacher
        self.config, self.machine, self.out = config, machine, out
        self.identity = as_json(config) | {"model": as_json(model.config), "precision": str(machine.dtype)}
        self.identity |= origin or {}
        self.stage = STAGES[config.stage]
        self.optimiser = torch.optim.AdamW(  # of a stage's parameters; it freezes the others
            self.stage.parameter_groups(model, config), lr=config.learning_rate, fused=machine.device.startswith("cuda")
        )
        half = machine.dtype is not torch.float32
        self.working = copy.deepcopy(self.model).to(machine.dtype) if half else self.model  # what computes
        if machine.compiled:
            compile_layers(self.working)
        self.progress = Progress()
        self.saved = self.counted = time.monotonic()

    def resume(self) -> bool:
        """Go on from the folder's last state, if it has one of the same run; CheckpointError if it's another's."""
        if not (self.out / STATE).exists():
            return False
        try:
            state = torch.load(self.out / STATE, map_location=self.machine.device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{self.out / STATE} is damaged ({reason}): delete it to begin anew") from None
        stored = state.get("identity", {})
        other = sorted(key for key in stored.keys() | self.identity if stored.get(key) != self.identity.get(key))
        if other:
            raise CheckpointError(
                f"{self.out} holds a run with other settings ({', '.join(other)}): give another --out or delete it"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._refresh()
        self.progress = Progress(**state["progress"] | {"history": tuple(state["progress"]["history"])})
        return True

    def save(self) -> None:
        """Write the checkpoint and the state to resume from."""
        self._count_time()
        checkpoint.save(self.model, self.out)
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": asdict(self.progress) | {"history": list(self.progress.history)},
        }
        partial = self.out / f"{STATE}.partial"
        torch.save(state, partial)
        partial.replace(self.out / STATE)
        self.saved = time.monotonic()

    def fit(self, training: Images, heldout: Images) -> None:
        """Train to the last epoch, validating after each."""
        self.counted = time.monotonic()
        while self.progress.epoch < self.config.epochs:
            loss = self._epoch(training)
            last = self.progress.epoch + 1 == self.config.epochs
            due = last or (self.progress.epoch + 1) % self.config.validate_every == 0
            figures = self._validate(heldout) if len(heldout) and due else {}
            entry = {"epoch": self.progress.epoch, "loss": loss} | figures
            print(json.dumps(entry), file=sys.stderr, flush=True)
            history = (*self.progress.history, entry)
            self.progress = Progress(self.progress.epoch + 1, 0, history, self.progress.wall_s)
            if self.progress.epoch == self.config.epochs or time.monotonic() - self.saved > SAVE_EVERY_S:
                self.save()

    def _epoch(self, training: Images) -> float:
        config, progress = self.config, self.progress
        order = epoch_order(len(training), config.seed, progress.epoch)
        steps_an_epoch = math.ceil(len(order) / config.batch_size)
        batches = training.batches(config.batch_size, order[progress.images :])
        self.working.train()
        losses = MeanLoss(progress.loss, progress.steps)
        title = f"epoch {progress.epoch + 1}/{config.epochs}"
        with tqdm(total=len(order), initial=progress.images, unit="img", desc=title, mininterval=2) as bar:
            for pixels, labels in batches:
                step = progress.epoch * steps_an_epoch + progress.images // config.batch_size
                losses.add(self._step(pixels, labels, step, config.epochs * steps_an_epoch))
                progress.images += len(labels)
                bar.update(len(labels))
                if step % CHECK_EVERY == 0:
                    bar.set_postfix(loss=f"{losses.check():.4f}", refresh=False)
                if time.monotonic() - self.saved > SAVE_EVERY_S:
                    progress.loss, progress.steps = float(losses.total), losses.steps
                    self.save()
        return losses.check()

    def _count_time(self) -> None:
        now = time.monotonic()
        self.progress.wall_s += now - self.counted
        self.counted = now

    def _step(self, pixels: Tensor, labels: Tensor, step: int, steps: int) -> Tensor:
        rate = learning_rate(step, steps, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        rng = step_rng(self.config, step)
        torch.manual_seed(rng.initial_seed())  # stochastic depth and gate noise draw from the device's own generator
        context = Step(self.config, rng, step, steps, self.teacher)
        self.working.zero_grad(set_to_none=True)
        loss = self.stage.loss(self.working, *self._move(pixels, labels), context)
        loss.backward()
        if self.working is not self.model:
            self._take_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self._refresh()
        return loss.detach()

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Those of the parameters that compute, in float32; one kernel for all, where launching is what takes time."""
        into, found = [], []
        for own, computed in zip(self.model.parameters(), self.working.parameters(), strict=True):
            if computed.grad is None:
                own.grad = None
                continue
            if own.grad is None:
                own.grad = torch.empty_like(own)
            into.append(own.grad)
            found.append(computed.grad)
        torch._foreach_copy_(into, found)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Round the model's parameters to those that compute."""
        if self.working is not self.model:
            torch._foreach_copy_(list(self.working.parameters()), list(self.model.parameters()))

    @torch.inference_mode()
    def _validate(self, heldout: Images) -> dict[str, Any]:
        self.working.eval()
        batches = (self._move(*batch) for batch in heldout.batches(self.config.batch_size))
        with torch.compiler.set_stance("force_eager"):  # evaluation alone isn't worth compiling for
            return self.stage.validate(self.working, batches, self.config)

    def _move(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels.to(self.machine.device), labels.to(self.machine.device)


def compile_layers(model: PrunedViT) -> None:
    """Layers through torch.compile, one after the other: alike, they share what is compiled, for every input size.

    Takes half a minute, and pays where computing takes the time, not launching kernels: large batches or inputs, or
    several runs on one GPU. Stochastic depth makes layers unlike each other; it is compiled for each, up to torch's
    limit of eight.
    """
    for block in model.vit.blocks:
        block.compile(dynamic=True)
    model.masked_block = torch.compile(model.masked_block, dynamic=True)


def as_json(config: TrainConfig | PrunedViTConfig) -> dict[str, Any]:
    """The settings as JSON holds them: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
