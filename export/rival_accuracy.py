"""What the rivals get right: top-1 of each that isn't the float32 model itself, on the same test images as ours.

    python -m export.rival_accuracy --bundle models/zoo/NAME --data DATA --out models/zoo/NAME/rival-accuracy.json

Measured are token merging, the dense graphs in int8 and, where the CPU computes in it, OpenVINO in bf16. The others
compute what the float32 graph computes at threshold 0, whose accuracy the bundle has, as it has that of our own in two
looks and in int8. `export.benchmark` reads all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from export.equal_accuracy import setting
from export.rivals import Rival, exported_rivals
from export.source import EVALUATION
from export.to_onnx import ExportError
from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, load_images, source_name
from models.options import count, new_file
from service.artifact import Bundle, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError

FILE = "rival-accuracy.json"
_BATCH = 32


def images_of(bundle: Bundle, data: str, max_images: int) -> dict[int, LabelledImages]:
    """The first `max_images` test images of `data` (0: all) at each input size.

    Raises:
        DataError: the data can't be read, or has other classes.
    """
    images = {size_px: load_images(data, "test", size_px) for size_px in bundle.manifest.sizes_px}
    images[bundle.manifest.full.size_px].check_classes(bundle.manifest.labels, "the model")
    count = {size_px: min(max_images or len(found), len(found)) for size_px, found in images.items()}
    return {size_px: found.select(np.arange(count[size_px])) for size_px, found in images.items()}


def measure(rivals: Sequence[Rival], images: Mapping[int, LabelledImages]) -> list[dict[str, Any]]:
    """Ask every rival that isn't exact about the images of its size: one row each."""
    rows = []
    for rival in tqdm([each for each in rivals if not each.exact], desc="rivals"):
        right: list[bool] = []
        title = f"{rival.name}, {rival.size_px} px"
        for pixels, truth in tqdm(images[rival.size_px].batches(_BATCH), desc=title, leave=False, mininterval=2):
            right += (rival.run(pixels.numpy()).logits.argmax(1) == truth.numpy()).tolist()
        rows.append({"rival": rival.name, "size_px": rival.size_px, "top1": round(float(np.mean(right)), 4)})
    return rows


def known(bundle: Bundle) -> Callable[[Rival], float | None]:
    """Top-1 of a rival on the test images, as the bundle's files have it; None where nobody measured it."""
    evaluation = json.loads((bundle.path / EVALUATION).read_text())
    at, names = partial(setting, bundle.manifest.full.size_px), ("size_px", "threshold", "sure", "again_px")
    float32 = {at(row["size_px"], row["threshold"]): row["top1"] for row in evaluation["rows"]}
    float32 |= {at(*(row[name] for name in names)): row["top1"] for row in evaluation["second_looks"]}
    int8 = {at(*(getattr(point, name) for name in names)): point.top1 for point in bundle.manifest.int8}
    others = {(row["rival"], row["size_px"]): row["top1"] for row in _measured(bundle)}

    def accuracy(rival: Rival) -> float | None:
        point = at(rival.size_px, rival.threshold, rival.sure, rival.again_px)
        if rival.exact or rival.kind == "float32":
            return float32.get(point)
        if rival.kind == "int8":
            return int8.get(point)
        return others.get((rival.name, rival.size_px))

    return accuracy


def _measured(bundle: Bundle) -> list[dict[str, Any]]:
    """The rows of the bundle's FILE; none, and stderr says so, where there is no such file of this version."""
    how = f"python -m export.rival_accuracy --bundle {bundle.path} --data DATA --out {bundle.path / FILE}"
    try:
        found = json.loads((bundle.path / FILE).read_text())
    except FileNotFoundError:
        found = {"version": None}
    if found["version"] != bundle.manifest.version:
        print(f"no {FILE} of this version of the model: measure some rivals' accuracy with `{how}`", file=sys.stderr)
        return []
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", required=True, help="parquet folder, image folder or hub name, with a test split")
    parser.add_argument("--max-images", type=count, default=0, help="of the test split; 0: all")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    options = parser.parse_args(argv)
    try:
        bundle = load_bundle(options.bundle)
        images = images_of(bundle, options.data, options.max_images)
        result: dict[str, Any] = {
            "data": source_name(options.data),
            "images": len(images[bundle.manifest.full.size_px]),
            "version": bundle.manifest.version,
            "runtime": f"onnxruntime {ort.__version__}",
            "rows": measure(exported_rivals(bundle, usable_cpus()), images),
        }
    except (ServiceError, CheckpointError, DataError, ExportError, ValueError) as error:
        print(f"export.rival_accuracy: {error}", file=sys.stderr)
        return 2
    for row in result["rows"]:
        print(f"{row['rival']:36s} {row['size_px']:4d} px {100 * row['top1']:6.2f} %")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
