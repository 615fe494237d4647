"""The write-up's figures of one checkpoint as PNG files, and every number in them as `analysis.json`.

    python -m models.analyse --checkpoint models/zoo/cifar100-vits14 --data DATA --out FOLDER

The last line of the output is one JSON object: settings and means.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from models import checkpoint, figures
from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, load_images, source_name
from models.figures import Adaptive, Curve, Example, Floats, Keep, Similarity
from models.labels import scaled_cosine_similarity
from models.macs import shape_of, used_macs
from models.options import count, device
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT

NUMBERS = "analysis.json"
KEEP_THRESHOLDS = (0.05, 0.2, 0.4, 0.6, 0.8)  # of the keep curve, beside the chosen threshold
FEWEST_IMAGES = 10  # a tenth of the images must be at least one
BATCH = 32


class Measured(NamedTuple):
    """What the forwards over n images gave, at threshold 0, the T thresholds of the keep curve and the chosen one."""

    labels: NDArray[np.int64]  # (n,)
    loss: Floats  # (n,) cross-entropy of the true class at threshold 0, nats; exp(-loss) is its probability
    dense_correct: NDArray[np.bool_]  # (n,) at threshold 0
    correct: NDArray[np.bool_]  # (n,) at the chosen threshold
    kept: NDArray[np.bool_]  # (n, L, P) at the chosen threshold
    macs_ratio: Floats  # (n,) at the chosen threshold
    keep: Floats  # (n, T, L) share of the patches kept


@torch.inference_mode()
def measure(model: PrunedViT, images: LabelledImages, threshold: float, keep_thresholds: Sequence[float]) -> Measured:
    """Run the sparse path at every threshold."""
    shape, device = shape_of(model), next(model.parameters()).device
    levels = {0.0, threshold, *keep_thresholds}
    parts = []
    for pixels, labels in tqdm(images.batches(BATCH), desc="compute", unit="batch", mininterval=2):
        x = normalise(pixels.to(device), model.config.mean, model.config.std)
        runs = {level: model(x, torch.full((len(x),), level, device=device), "sparse") for level in levels}
        dense, kept = runs[0.0].logits.float().cpu(), runs[threshold].kept.cpu()
        tensors = (
            labels,
            F.cross_entropy(dense, labels, reduction="none"),
            dense.argmax(1) == labels,
            runs[threshold].logits.argmax(1).cpu() == labels,
            kept,
            used_macs(shape, kept, threshold > 0).double() / shape.dense,
            torch.stack([runs[level].kept.float().mean(-1).cpu() for level in keep_thresholds], 1),
        )
        parts.append([tensor.numpy() for tensor in tensors])
    return Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@torch.inference_mode()
def similarities(model: PrunedViT, images: LabelledImages) -> Floats:
    """(n, L, P) scaled cosine similarity of each patch, from each layer's input to its output, in the dense model."""
    prefix, device = model.vit.num_prefix_tokens, next(model.parameters()).device
    parts = []
    for pixels, _ in tqdm(images.batches(BATCH), desc="similarity", unit="batch", mininterval=2):
        hidden = model.trajectory(normalise(pixels.to(device), model.config.mean, model.config.std)).hidden
        patches = torch.stack(hidden, 1)[:, :, prefix:]  # (B, L + 1, P, C)
        parts.append(scaled_cosine_similarity(patches[:, :-1], patches[:, 1:]).float().cpu().numpy())
    return np.concatenate(parts)


def summarise(values: Floats, bins: int = 50) -> Similarity:
    """Histogram, mean and percentiles over images and patches: similarities (n, L, P) in [0, 1] -> Similarity."""
    layers = values.transpose(1, 0, 2).reshape(values.shape[1], -1).clip(0, 1)  # (L, n * P), rid of rounding
    edges = np.linspace(0, 1, bins + 1)
    share = np.stack([np.histogram(layer, edges)[0] for layer in layers]) / layers.shape[1]
    p10, p90 = np.quantile(layers, (0.1, 0.9), axis=1)
    return Similarity(edges, share, layers.mean(1, dtype=np.float64), p10, p90)


def patch_states(kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """kept in the gated layers (gated, P) -> (gated, P): KEPT, AGAIN (idle, kept later) or GONE (idle to the end)."""
    later = np.zeros_like(kept)
    later[:-1] = np.logical_or.accumulate(kept[::-1])[::-1][1:]
    return np.select([kept, later], [figures.KEPT, figures.AGAIN], figures.GONE).astype(np.uint8)


def ring_means(grid: Floats) -> Floats:
    """Mean of each square ring of (g, g), from the border inwards -> (ceil(g / 2),)."""
    steps = np.minimum(np.arange(len(grid)), np.arange(len(grid))[::-1])  # to the nearer edge
    ring = np.minimum(steps[:, None], steps)  # (g, g)
    return np.array([grid[ring == i].mean() for i in range(ring.max() + 1)])


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation of (n,) and (n,), in [-1, 1], ties sharing their mean rank; NaN where one is constant."""
    ranks = []  # less their mean
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts + len(values)) / 2)[inverse])
    a, b = ranks
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else math.nan


def adaptivity(macs_ratio: Floats, loss: Floats, correct: NDArray[np.bool_], bins: int = 24) -> Adaptive:
    """MACs (n,) by the dense model's loss (n,), in tenths; easy: the third of least loss, if correct; hard: of most."""
    order, third = loss.argsort(kind="stable"), len(loss) // 3
    easy, hard = macs_ratio[order[:third][correct[order[:third]]]], macs_ratio[order[-third:]]
    edges = np.linspace(macs_ratio.min(), macs_ratio.max() + 1e-3, bins + 1)  # never all at one point
    tenths = [(loss[tenth], macs_ratio[tenth]) for tenth in np.array_split(order, 10)]
    return Adaptive(
        edges=edges,
        easy=np.histogram(easy, edges)[0] / max(1, len(easy)),
        hard=np.histogram(hard, edges)[0] / len(hard),
        easy_mean=float(easy.mean()) if len(easy) else math.nan,
        hard_mean=float(hard.mean()),
        decile_loss=np.array([losses.mean() for losses, _ in tenths]),
        decile_mean=np.array([macs.mean() for _, macs in tenths]),
        decile_p10=np.array([np.quantile(macs, 0.1) for _, macs in tenths]),
        decile_p90=np.array([np.quantile(macs, 0.9) for _, macs in tenths]),
        spearman=spearman(macs_ratio, loss),
    )


def choose(names: Sequence[str], depth: Floats, correct: NDArray[np.bool_]) -> list[int]:
    """Two images: a snake and a tree, answered correctly, with the median depth (n,) of such; else the first ones."""
    chosen: list[int] = []
    for wanted in ("snake", "_tree"):
        group = [i for i, name in enumerate(names) if name.endswith(wanted) and correct[i]]
        if group:
            chosen.append(min(group, key=lambda i: abs(depth[i] - np.median(depth[group]))))
    return (chosen + [i for i in range(len(names)) if i not in chosen])[:2]


def examples(images: LabelledImages, measured: Measured, gated: list[int]) -> list[Example]:
    """The chosen images with the states and depths of their patches."""
    names, found = [images.labels[i] for i in measured.labels], []
    for i in choose(names, measured.kept.sum((1, 2)), measured.correct):
        pixels, _ = next(iter(images.select(np.array([i])).batches(1)))
        kept = measured.kept[i, gated]
        found.append(Example(pixels[0].numpy(), names[i], patch_states(kept), kept.sum(0)))
    return found


def curves(file: Path) -> list[Curve]:
    """The curve of every input size in what `models.evaluate --out` wrote; DataError for another file."""
    try:
        evaluation = json.loads(file.read_text())
        full_px, patches, rows = (evaluation[name] for name in ("image_size_px", "patches", "rows"))
        name, attention = file.resolve().parent.name, evaluation["attention"].replace("_", " ")
        found = []
        for size_px in sorted({row.get("size_px", full_px) for row in rows}, reverse=True):
            own = [row for row in rows if row.get("size_px", full_px) == size_px]
            count = round(patches * (size_px / full_px) ** 2)
            columns = ([row[key] for row in own] for key in ("threshold", "top1", "skipped_patches"))
            level, top1, skipped = (np.array(column, float) for column in columns)
            found.append(Curve(f"{name}, {size_px} px ({count} patches), {attention}", level, top1, skipped / count))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no evaluation ({error!r}): give what models.evaluate --out wrote") from None
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", "--bundle", type=Path, required=True, help="checkpoint folder or model bundle")
    parser.add_argument("--baseline", type=Path, help="checkpoint before training, to compare similarities with")
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[], help="JSON files of models.evaluate --out")
    parser.add_argument("--threshold", type=float, default=0.5, help="score threshold of all figures but the curves")
    parser.add_argument("--image-size", type=int, help="side of the input, px; default: the model's own")
    parser.add_argument("--max-images", type=count, default=1000, help="spread evenly over the test images; 0: all")
    parser.add_argument("--device", type=device, default="auto", help="auto: cuda where there is one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files and analysis.json")
    return parser.parse_args(argv)


def load(folder: Path, size_px: int | None, place: str) -> PrunedViT:
    """A checkpoint at an input size, by default its own."""
    model = checkpoint.load(folder)
    return checkpoint.at_size(model, size_px or model.config.image_size_px).to(place)


def load_test_images(source: str, model: PrunedViT, count: int) -> LabelledImages:
    """`count` of the test images (0: all), evenly spread: image folders are sorted by class."""
    images = load_images(source, "test", model.config.image_size_px)
    images.check_classes(model.config.labels, "the model")
    count = min(count or len(images), len(images))
    if count < FEWEST_IMAGES:
        raise DataError(f"{count} images are too few to compare: give {FEWEST_IMAGES} or more")
    return images.spread(count)


def analyse(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and means, and what each figure draws."""
    found = [curve for file in options.evaluation for curve in curves(file)]
    model, level = load(options.checkpoint, options.image_size, options.device), options.threshold
    gated = list(model.config.gated_layers)
    if not gated or not 0 <= level <= 1:
        raise ValueError("needs a checkpoint with gates and a --threshold in [0, 1]")
    images, before = load_test_images(options.data, model, options.max_images), None
    levels = sorted({level, *KEEP_THRESHOLDS})
    measured = measure(model, images, level, levels)
    after = summarise(similarities(model, images))
    if options.baseline:
        before = summarise(similarities(load(options.baseline, model.config.image_size_px, options.device), images))
        if len(before.mean) != len(after.mean):
            raise ValueError(f"--baseline has {len(before.mean)} layers, the checkpoint {len(after.mean)}")
    depth = measured.kept[:, gated].sum(1).mean(0)  # (P,)
    depth = depth.reshape(2 * [figures.side(len(depth))])
    summary = {
        "checkpoint": options.checkpoint.resolve().name,
        "baseline": options.baseline.resolve().name if options.baseline else None,
        "data": source_name(options.data),
        "images": len(images),
        "image_size_px": model.config.image_size_px,
        "attention": model.config.attention,
        "score_threshold": level,
        "macs_ratio": measured.macs_ratio.mean(),
        "top1": measured.correct.mean(),
        "top1_at_threshold_0": measured.dense_correct.mean(),
    }
    return summary, {
        "similarity": {"after": after, "before": before},
        "threshold": found,
        "layers": examples(images, measured, gated),
        "keep": Keep(np.array(levels), measured.keep[:, :, gated].mean(0, dtype=np.float64), tuple(gated)),
        "adaptive": adaptivity(measured.macs_ratio, measured.loss, measured.dense_correct),
        "depth": {"mean": depth, "rings": ring_means(depth), "gated_layers": len(gated)},
    }


def draw(summary: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Figure]:
    """The figures by file name; none of thresholds without an evaluation."""
    level = summary["score_threshold"]
    note = "{checkpoint}, {images} test images of {data}, {image_size_px} px".format(**summary)
    at = f"{note}, score threshold {level:g}"
    before = f"; before training: {summary['baseline']}" if summary["baseline"] else ""
    drawn = {
        "similarity.png": figures.similarity(**numbers["similarity"], note=f"{note}, no patch skipped{before}"),
        "layers.png": figures.layers(numbers["layers"], numbers["keep"].gated_layers, level, summary["checkpoint"]),
        "keep.png": figures.keep(numbers["keep"], level, note),
        "adaptive.png": figures.adaptive(numbers["adaptive"], at),
        "depth.png": figures.depth(**numbers["depth"], note=at),
    }
    return drawn | ({"threshold.png": figures.threshold(numbers["threshold"])} if numbers["threshold"] else {})


def plain(value: Any) -> Any:
    """Arrays and tuples as JSON: numbers rounded, NaN as null, an example without its pixels."""
    if hasattr(value, "_asdict"):
        value = {key: item for key, item in value._asdict().items() if key != "image"}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        summary, numbers = analyse(options)
    except (DataError, CheckpointError, ValueError) as error:
        print(f"models.analyse: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for file, figure in draw(summary, numbers).items():
        figures.save(figure, options.out / file)
        print(options.out / file)
    sections = (f" {json.dumps(name)}: {json.dumps(plain(value))}" for name, value in (summary | numbers).items())
    (options.out / NUMBERS).write_text("{\n" + ",\n".join(sections) + "\n}\n")
    print(options.out / NUMBERS, json.dumps(plain(summary)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
