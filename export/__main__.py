"""Turn a trained checkpoint into a model bundle (ONNX), or into TorchScript.

    python -m export --checkpoint runs/joint --out models/zoo/NAME --images IMAGES --origin TEXT
    python -m export --checkpoint models/zoo/NAME --out models/zoo/NAME        (write a bundle's graphs anew)
    python -m export --checkpoint models/zoo/NAME --out models/zoo/NAME --keep-graphs   (its manifest and card anew)
    python -m export --checkpoint models/zoo/NAME --out models/zoo/NAME --format torchscript

The checkpoint folder must hold what `models.train` and `models.evaluate` wrote: train.json, evaluation.json (test
images) and calibration.json (held-out ones); the input sizes of calibration.json are those that the bundle serves.
IMAGES are a few real ones, in an image folder, to prove parity on; a bundle's own samples by default.
With --calibrate there are int8 graphs too, their ranges observed on DATA's held-out training images; a bundle that has
them is written anew with them. `python -m export.precision` then measures what int8 costs, and --keep-graphs takes what
was measured anew into manifest and card, in seconds.
TorchScript is a file for each input size of the bundle, `model.pt` and `model-<px>.pt`, and `torchscript.json`, which
records them: in the bundle's folder they are served with SKIPVIT_ENGINE=torchscript.
Exits 1 when parity doesn't hold, 2 for input that can't be used. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from export.bundle import keep_graphs, write_bundle
from export.parity import Parity
from export.source import read_source
from export.to_onnx import ExportError
from export.to_torchscript import write_torchscript
from models.backbone import UnsupportedModel
from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, held_out, load_images
from service.artifact import Manifest, Origin
from service.errors import BundleError, InferenceFailed

SAMPLES = "samples"
PARITY_IMAGES = 48  # at most: each is run 24 times at each size, twice
FEW_IMAGES = 200  # held out: a standard error of the points lost is about as large as what presets may lose


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with a trained model, or a bundle")
    parser.add_argument(
        "--out", type=Path, required=True, help="the bundle's folder; its last part is the model's name"
    )
    parser.add_argument("--format", choices=["onnx", "torchscript"], default="onnx")
    parser.add_argument("--images", help=f"images for parity, {PARITY_IMAGES} at most; default: CHECKPOINT/{SAMPLES}")
    parser.add_argument("--origin", help="where the weights come from; default: as in the checkpoint's own manifest")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights")
    parser.add_argument("--calibrate", metavar="DATA", help="training images of which the held-out ones calibrate int8")
    parser.add_argument("--keep-graphs", action="store_true", help="a bundle's graphs and parity as they are")
    parser.add_argument("--holdout-ratio", type=float, default=0.05, help="as the training had it (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = parse(argv)
    try:
        if blocked := [part for part in (options.out, *options.out.parents) if part.exists() and not part.is_dir()]:
            raise ValueError(f"--out {options.out}: {blocked[0]} is a file, not a folder")
        run = _torchscript if options.format == "torchscript" else _bundle
        parities = run(options)
    except (CheckpointError, DataError, UnsupportedModel, BundleError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except (ExportError, InferenceFailed) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    for name, parity in parities.items():
        print(f"{name}: {parity}", file=sys.stderr)
    print(json.dumps({name: parity.as_json() for name, parity in parities.items()}))
    return 0 if all(parity.holds for parity in parities.values()) else 1


def _images(options: argparse.Namespace) -> LabelledImages:
    return load_images(options.images or str(options.checkpoint / SAMPLES), "test", 1).spread(PARITY_IMAGES)


def _bundle(options: argparse.Namespace) -> dict[str, Parity]:
    pattern = Manifest.model_json_schema()["properties"]["name"]["pattern"]
    if not re.fullmatch(pattern, name := options.out.name):
        allowed = "letters, digits and . _ - after a letter or digit"
        raise ValueError(
            f"--out {options.out}: its last part names the model, and {name!r} is no such name ({allowed})"
        )
    origin = Origin(licence=options.licence, weights=options.origin) if options.origin else None
    source, unseen = read_source(options.checkpoint, origin), None
    if options.keep_graphs:
        if options.calibrate:
            raise ValueError("--keep-graphs and --calibrate exclude each other: other ranges make other graphs")
        return keep_graphs(source, options.out)
    if (judged := source.calibration["images"]) < FEW_IMAGES:
        print(f"presets are chosen on {judged} held-out images, so by chance: hold out more", file=sys.stderr)
    if options.calibrate:
        unseen = held_out(load_images(options.calibrate, "train", 1), options.holdout_ratio, source.training)
        source.precisions.pop("int8", None)  # measured with other ranges
    return write_bundle(source, options.out, _images(options), unseen)


def _torchscript(options: argparse.Namespace) -> dict[str, Parity]:
    return write_torchscript(options.checkpoint, options.out, _images(options))


if __name__ == "__main__":
    sys.exit(main())
