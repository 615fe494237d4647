"""Is spending compute per image worth it? The same model, each image forced to the mean, at the same mean MACs.

    python -m models.adaptive --checkpoint models/zoo/NAME --data DATA --evaluation EVALUATION.json --out adaptive.json

EVALUATION is what `models.evaluate` wrote for the same images: it says how many patches each layer keeps on average at
a threshold. Here every image keeps just that many in that layer, the highest-scored ones. What the adaptive rule has
ahead is what it gains by giving hard images more and easy ones less. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models import checkpoint
from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, load_images, source_name
from models.macs import shape_of, used_macs
from models.options import device, levels, new_file
from models.preprocessing import normalise
from models.pruned_vit import Decide, PrunedViT


def keep_highest(counts: Iterator[int]) -> Decide:
    """A rule that keeps the next count's number of highest-scored patches in every image, whatever the threshold."""

    def decide(logits: Tensor, threshold: Tensor) -> Tensor:
        rank = logits.argsort(stable=True, dim=-1, descending=True).argsort(-1)  # (B, P), 0 for the highest
        return rank < next(counts)

    return decide


@torch.inference_mode()
def forced(model: PrunedViT, images: LabelledImages, counts: list[int], batch_size: int) -> dict[str, float]:
    """Accuracy and mean MACs ratio when each gated layer keeps the given number of patches of every image."""
    shape, right, macs = shape_of(model), 0, 0.0
    device = next(model.parameters()).device
    for pixels, labels in tqdm(images.batches(batch_size), desc=f"{sum(counts)} patches", unit="batch", mininterval=2):
        x = normalise(pixels.to(device), model.config.mean, model.config.std)
        out = model(x, x.new_zeros(len(x)), "sparse", keep_highest(iter(counts)))
        right += int((out.logits.argmax(1).cpu() == labels).sum())
        macs += float(used_macs(shape, out.kept, gated=True).sum())
    return {"macs_ratio": round(macs / len(images) / shape.dense, 4), "top1": round(right / len(images), 4)}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Each threshold's adaptive figures beside the forced ones."""
    model = checkpoint.load(options.checkpoint).to(options.device)
    evaluation = json.loads(options.evaluation.read_text())
    size_px = model.config.image_size_px
    images = load_images(options.data, "test", size_px)
    images.check_classes(model.config.labels, "the model")
    if len(images) != evaluation["images"] or evaluation["split"] != "test":
        raise DataError(f"{options.evaluation} is of {evaluation['images']} {evaluation['split']} images, not of these")
    rows = []
    for threshold in options.thresholds:
        found = [row for row in evaluation["rows"] if (row["size_px"], row["threshold"]) == (size_px, threshold)]
        if not found:
            raise DataError(f"{options.evaluation} has no row for {size_px} px and threshold {threshold:g}")
        (row,) = found
        counts = [round(row["keep_per_layer"][i] * model.patches) for i in model.config.gated_layers]
        adaptive = {"macs_ratio": row["macs_ratio"], "top1": row["top1"]}
        rows.append({"threshold": threshold, "adaptive": adaptive, "forced": forced(model, images, counts, 50)})
    return {"data": source_name(options.data), "images": len(images), "size_px": size_px, "rows": rows}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", "--bundle", type=Path, required=True, help="checkpoint folder or model bundle")
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--evaluation", type=Path, required=True, help="JSON of `models.evaluate` on the test images")
    parser.add_argument("--thresholds", type=levels, default="0.15,0.25,0.35,0.5")
    parser.add_argument("--device", type=device, default="auto", help="auto: cuda where there is one")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        result = compare(options)
    except (DataError, CheckpointError, ValueError, OSError) as error:
        print(f"models.adaptive: {error}", file=sys.stderr)
        return 2
    for row in result["rows"]:
        gain = 100 * (row["adaptive"]["top1"] - row["forced"]["top1"])
        print(f"threshold {row['threshold']:g}: adaptive {row['adaptive']}, forced {row['forced']}: {gain:+.2f} points")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
