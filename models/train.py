"""Train a model: `--stage dense` fine-tunes a timm ViT, `--stage gates` trains its gates on cosine labels, `--stage
joint` trains both together on the task, for every threshold and input size at once.

    python -m models.train @models/recipes/teacher.args --data DATA --init BACKBONE.safetensors --out runs/teacher
    python -m models.train @models/recipes/joint.args --data DATA --init TEACHER --teacher TEACHER --out runs/joint

DATA is a folder of parquet files, an image folder or a hub name. `@FILE` reads options from a recipe, one a line; those
after it win. A run that was stopped goes on from its last checkpoint when the same command is given again. The last
line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from tqdm import tqdm

from models import checkpoint
from models.augment import augment
from models.backbone import UnsupportedModel, reads_prefix_only
from models.checkpoint import CheckpointError
from models.config import IMAGENET_MEAN, IMAGENET_STD, PrunedViTConfig, TrainConfig
from models.data import (
    DataError,
    Images,
    LabelledImages,
    decode,
    digest,
    epoch_order,
    load_images,
    source_name,
    source_size,
    split_holdout,
)
from models.gates import GATES
from models.options import count, device, integers, new_file, positive
from models.pruned_vit import PrunedViT, build
from models.regularise import SCALINGS
from models.run import Machine, Run, as_json, compile_layers, pick_machine, step_rng
from models.stages import STAGES
from models.teacher import Teacher

# Of TrainConfig: what the views of a run depend on, beside its images.
VIEWS = ("batch_size", "shift_px", "crop_min", "colour", "mixup", "cutmix", "holdout_ratio", "max_images", "seed")
MODEL = "vit_small_patch14_dinov2"  # where neither --model nor --init names one


class RecipeParser(argparse.ArgumentParser):
    """Reads `@FILE`: one option a line with its value, `#` starts a comment."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return arg_line.partition("#")[0].split()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; every TrainConfig field is an option."""
    parser = RecipeParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, fromfile_prefix_chars="@"
    )
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, state and log")
    parser.add_argument("--init", type=Path, help="checkpoint folder or timm safetensors file; without: random weights")
    parser.add_argument("--model", help=f"timm model name; default: --init's, or {MODEL}")
    parser.add_argument("--image-size", type=positive, help="side of the input, px; default: --init's, or 112")
    parser.add_argument(
        "--attention", choices=["full_context", "kept_only"], help="default: as --init, or full_context"
    )
    parser.add_argument(
        "--skips", choices=["layer", "mlp"], help="what an idle patch bypasses; default: --init's, or layer"
    )
    parser.add_argument("--full-layers", type=count, help="so many first layers attend to all; default: --init's")
    parser.add_argument("--mlp-layers", type=count, help="so many first layers skip the MLP alone; default: --init's")
    parser.add_argument("--gate", choices=sorted(GATES), help="what scores a patch; default: --init's, or context")
    parser.add_argument(
        "--gated-layers", type=integers, help="comma-separated, from 0; default: as --init, or all but a CLS-only last"
    )
    parser.add_argument("--teacher", type=Path, help="checkpoint folder whose answers are learned as well")
    parser.add_argument("--answers", type=new_file, help="file that holds them for runs with the same views")
    parser.add_argument("--answers-only", action="store_true", help="write that file for every epoch and stop")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument(
        "--compile", action="store_true", help="layers through torch.compile: for large batches or inputs"
    )
    parser.add_argument(
        "--bypass-rank", type=count, help="of an update that idle patches get; default: --init's, or none"
    )
    parser.add_argument("--scaled", nargs="*", choices=sorted(SCALINGS), help="against over-smoothing")
    parser.add_argument("--mean", type=float, nargs=3, help="of RGB in [0, 1]; default: --init's, or as timm's weights")
    parser.add_argument("--std", type=float, nargs=3, help="likewise")
    parser.add_argument("--exits", type=integers, help="layers after which a head of their own may answer, from 0")
    parser.add_argument("--workers", type=count, default=0, help="processes that decode images; 0: none of their own")
    for field in fields(TrainConfig):
        if field.name != "stage":
            kind: Any = {"int": int, "float": float, "tuple[int, ...]": integers}[str(field.type)]
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
    return parser.parse_args(argv)


def model_for(options: argparse.Namespace, labels: tuple[str, ...]) -> PrunedViT:
    """The model to train, initialised; a checkpoint folder as --init brings its own config along."""
    config, same_labels = _start(options, labels)
    changeable = ("attention", "skips", "full_layers", "mlp_layers", "gate", "bypass_rank", "exits", "scaled")
    given = {name: getattr(options, name) for name in (*changeable, "mean", "std")}
    given = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items() if value is not None}
    config = replace(config, **given)
    vit = build(replace(config, gated_layers=())).vit
    if options.stage in ("dense", "exits"):
        config = replace(config, gated_layers=())
    elif options.gated_layers:
        config = replace(config, gated_layers=options.gated_layers)
    elif not config.gated_layers:
        config = replace(config, gated_layers=tuple(range(len(vit.blocks) - reads_prefix_only(vit))))
    sizes = (*options.sizes_px, *options.judged_px)
    if wrong := [size for size in sizes if size % vit.patch_embed.patch_size[0]]:
        raise ValueError(f"--sizes-px {wrong}: not a whole number of {vit.patch_embed.patch_size[0]}-px patches")
    torch.manual_seed(options.seed)
    drop_path = 0.0 if options.stage in ("gates", "exits") else options.drop_path
    model = build(config, drop_path=drop_path, any_size=bool(sizes))
    if options.init is not None:
        gates = options.stage != "gates"  # which learn from scratch
        fresh = checkpoint.initialise(model, options.init, gates=gates, head=same_labels)
        print(f"started from {options.init}, {len(fresh)} tensors new: {', '.join(fresh[:4])} ...", file=sys.stderr)
    return model


def _start(options: argparse.Namespace, labels: tuple[str, ...]) -> tuple[PrunedViTConfig, bool]:
    """The config to start from, and whether --init's head is one for these labels."""
    name = options.model or MODEL
    mean, std = _normalisation(name)
    config = PrunedViTConfig(name, options.image_size or 112, labels, gate="context", mean=mean, std=std)
    if options.init is None or not (options.init / checkpoint.CONFIG).exists():
        return config, True
    stored = checkpoint.read_config(options.init)
    if options.model not in (None, stored.architecture):
        raise ValueError(f"--model {options.model}, but {options.init} is a {stored.architecture}: leave out --model")
    gate = stored.gate if stored.gated_layers else config.gate
    size_px = options.image_size or stored.image_size_px
    return replace(stored, labels=labels, gate=gate, image_size_px=size_px), stored.labels == labels


def _normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that timm's weights of a model were trained on, else ImageNet's."""
    known = timm.get_pretrained_cfg(model)
    return (IMAGENET_MEAN, IMAGENET_STD) if known is None else (tuple(known.mean), tuple(known.std))


def teacher_for(
    options: argparse.Namespace, config: TrainConfig, machine: Machine, training: LabelledImages
) -> Teacher | None:
    """The run's teacher, if it has one."""
    if options.teacher is None:
        return None
    model = checkpoint.load(options.teacher).requires_grad_(False).to(machine.device, machine.dtype)
    training.check_classes(model.config.labels, f"--teacher {options.teacher}")
    if machine.compiled:
        compile_layers(model)
    views = {name: getattr(config, name) for name in VIEWS} | {"data": source_name(options.data)}
    views |= {"images": len(training), "source_px": training.size_px}
    views |= {"teacher": weights_digest(options.teacher)}
    return Teacher(model, views, keeps=options.answers_only)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Run or resume the training that the options describe and return its summary, also written to `train.json`."""
    config = TrainConfig(**{field.name: getattr(options, field.name) for field in fields(TrainConfig)})
    images = load_images(options.data, "train", 1)  # the size is known once the model is
    model = model_for(options, images.labels)
    teacher_px = 0 if options.teacher is None else checkpoint.read_config(options.teacher).image_size_px
    largest_px = max(model.config.image_size_px, teacher_px, *config.sizes_px, *config.judged_px)
    source_px = source_size(images, largest_px)
    training, heldout = split_holdout(replace(images, size_px=source_px), config.holdout_ratio)
    if config.max_images:
        training = training.select(epoch_order(len(training), config.seed, 0)[: config.max_images])
    if not len(heldout):
        print("no image is held out: nothing judges this training, nor can calibrate a bundle", file=sys.stderr)
    machine = pick_machine(options.device, options.precision, options.compile)
    teacher = teacher_for(options, config, machine, training)
    if options.answers_only:
        return ask(teacher, options.answers, decode(training, options.workers).to(machine.device), config)
    if teacher is not None and options.answers is not None:
        teacher.load(options.answers)
    decoded = [decode(split, options.workers) for split in (training, heldout)]
    if absent := sorted(set(range(len(images.labels))) - set(decoded[0].labels.tolist())):
        names = ", ".join(images.labels[index] for index in absent[:4])
        print(f"{len(absent)} of {len(images.labels)} classes have no training image: {names}", file=sys.stderr)
    origin = {
        "data": source_name(options.data),
        "training_digest": decoded[0].digest(),
        "init": options.init and options.init.name,
        "init_digest": options.init and weights_digest(options.init),
        "teacher": options.teacher and options.teacher.name,
        "teacher_digest": options.teacher and weights_digest(options.teacher),
        "training_images": len(training),
        "heldout_images": len(heldout),
        "heldout_digest": digest(heldout),
    }
    run = Run(model, config, machine, options.out, teacher, origin)
    if run.resume():
        done = run.progress
        print(f"resumed at epoch {done.epoch + 1}, {done.images} images in", file=sys.stderr)
    run.fit(*(split.to(machine.device) for split in decoded))
    summary = {
        "config": as_json(config),
        **origin,
        "device": torch.cuda.get_device_name() if machine.device.startswith("cuda") else "cpu",
        "precision": str(machine.dtype),
        "wall_s": round(run.progress.wall_s, 1),
        "history": run.progress.history,
    }
    (options.out / checkpoint.TRAINING).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def ask(teacher: Teacher | None, file: Path | None, training: Images, config: TrainConfig) -> dict[str, Any]:
    """Write the teacher's answers to every view of the run that the options describe, which isn't run."""
    if teacher is None or file is None:
        raise ValueError("--answers-only needs --teacher, who answers, and --answers, where they go")
    classes, step = len(teacher.model.config.labels), 0
    for epoch in tqdm(range(config.epochs), desc="answers", unit="epoch"):
        for pixels, labels in training.batches(config.batch_size, epoch_order(len(training), config.seed, epoch)):
            teacher.answers(step, augment(pixels, labels, classes, config, step_rng(config, step)))
            step += 1
    teacher.save(file)
    return {"answers": file.name, "steps": step, "views": teacher.views}


def weights_digest(source: Path) -> str:
    """The sha256 of the weights in a checkpoint folder or a file; CheckpointError if they are missing."""
    file = source / checkpoint.WEIGHTS if source.is_dir() else source
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: give a checkpoint folder or a safetensors file in timm names")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
