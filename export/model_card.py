"""PURE: the model card (the bundle's README.md), every number of it from the bundle's own JSON files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from export.calibrate import MARGIN, TOLERATED_LOSS, dense_row
from export.card_rivals import methods_of, published, rivals, short_runs
from export.card_targets import promised, targets
from models.frontier import frontier
from service.artifact import Manifest, Precision, PrecisionPoint

RECIPES = {
    "gates": "the backbone stays frozen, and each gate learns, by cross-entropy, whether its layer changes a patch "
    "(scaled cosine similarity below {cosine_threshold}).",
    "joint": "gates and backbone learn the task together, through hard decisions with straight-through gradients, at "
    "thresholds from 0 to {threshold_max} and input sizes in px ({sizes}); a budget ties the threshold to the share "
    "of patches skipped.",
}
LOWER: dict[Precision, str] = {
    "int8": "computes its large matrix products in int8 (weights 7 bits for each output channel, activations 8 bits in "
    "ranges observed on held-out training images, `int8.json`)",
    "float16": "computes in float16 throughout, for GPUs; measured on a CPU, which rounds after each operator",
}
PICTURES = {  # file of `models.analyse` -> what it shows
    "similarity.png": "How little a patch changes from a layer's input to its output, before training here and after",
    "threshold.png": "Accuracy and skipped patches against the threshold",
    "layers.png": "The patches that each layer computes, in two images",
    "keep.png": "The share of patches that each layer computes",
    "adaptive.png": "What easy and hard images cost",
    "depth.png": "How deep patches go, by their place in the image",
}


def render(
    manifest: Manifest,
    training: dict[str, Any],
    evaluation: dict[str, Any],
    parity: dict[str, dict[str, Any]],
    results: dict[str, Any] | None = None,
    figures: Collection[str] = (),
    drawn: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown; with `results` (of `models.results`) and the names in figures/, their sections as well.

    Args:
        drawn: what each JSON file in figures/ holds, by its name.
    """
    full = manifest.full
    gated = f"{len(manifest.gated_layers)} of {manifest.layers}"
    rows = [row for row in evaluation["rows"] if row["size_px"] in manifest.sizes_px]
    methods = methods_of(results, evaluation, manifest) if results else []
    sections = [
        f"# {manifest.name}",
        f"A pruned ViT (`{manifest.architecture}` in timm, {full.size_px} px, {full.patches} patches, "
        f"{len(manifest.labels)} classes) with a gate in {gated} layers, `{manifest.attention}` attention. "
        f"Input sizes: {', '.join(f'{size_px} px' for size_px in manifest.sizes_px)}. Version `{manifest.version}`. "
        "Every number below is from the JSON files in this folder.",
        "## How it was made",
        _recipe(training),
        "## What it does",
        f"On {evaluation['images']:,} {evaluation['split']} images of {manifest.evaluation.data}, never trained or "
        f"tuned on (`evaluation.json`; {evaluation['runtime']}). MACs with gates and with keys and values of idle "
        "patches (not counted, for it is computed and dropped where leaving it out takes longer: the attention "
        "products of their queries, and on a CPU the queries), against "
        f"{full.dense_macs / 1e9:.3f} GMACs of the dense model at {full.size_px} "
        f"px. That leaves out what nothing reads in the last layer; timm's own forward costs "
        f"{100 * (full.timm_forward_macs / full.dense_macs - 1):.1f} % more for the same logits. Measure it as "
        f"it is served with `python -m models.evaluate --bundle models/zoo/{manifest.name} --data DATA`. The frontier, "
        "where no cheaper pair of input size and threshold is as accurate:",
        _table(frontier(rows), rows, manifest),
        f"At {full.size_px} px, every threshold:",
        _table([row for row in rows if row["size_px"] == full.size_px], rows, manifest),
        *(rivals(results, methods, figures) if results else []),
        *(targets(results, methods, rows, training["config"]["threshold_max"], drawn or {}) if results else []),
        *(published(results.get("published")) if results else []),
        *(short_runs(results["short_runs"], figures) if results else []),
        *_pictures(figures),
        *_presets(manifest, rows, evaluation["second_looks"], results, training["heldout_images"]),
        *(_second_looks(evaluation["second_looks"], rows, manifest) if evaluation["second_looks"] else []),
        *_lower("int8", manifest.int8, full.size_px),
        *_lower("float16", manifest.float16, full.size_px),
        "## Parity",
        _parity(parity),
        "## Limits",
        "Made for small photographs of the classes it knows; anything else is answered with one of them all the same.",
        "## Licence and origin",
        f"{manifest.origin.licence}. {manifest.origin.weights}",
    ]
    return "\n\n".join(sections) + "\n"


def _recipe(training: dict[str, Any]) -> str:
    config = training["config"]
    sizes = ", ".join(map(str, config["sizes_px"])) or "full size"
    taught = f", taught by `{training['teacher']}`" if training["teacher"] else ""
    return (
        f"Started from `{training['init']}`{taught}. Then `python -m models.train --stage {config['stage']}`: "
        f"{RECIPES[config['stage']].format(**config, sizes=sizes)} {training['training_images']:,} training images, "
        f"{config['epochs']} epochs, batch {config['batch_size']}, AdamW, learning rate {config['learning_rate']}, "
        f"seed {config['seed']}, {training['wall_s'] / 60:.0f} minutes on {training['device']} (`train.json`)."
    )


def _table(shown: list[dict[str, Any]], rows: list[dict[str, Any]], manifest: Manifest) -> str:
    dense = dense_row(rows, manifest.full.size_px)["top1"]
    lines = [
        "| input | threshold | patches skipped (mean) | MACs decrease | top-1 | points lost to threshold 0 |",
        "|---|---|---|---|---|---|",
    ]
    for row in shown:
        lines.append(
            f"| {row['size_px']} px | {row['threshold']:g} | {row['skipped_patches']:.1f} of "
            f"{manifest.graph(row['size_px']).patches} | {100 * (1 - row['macs_ratio']):.1f} % "
            f"| {100 * row['top1']:.2f} % | {100 * (dense - row['top1']):.2f} |"
        )
    return "\n".join(lines)


def _presets(
    manifest: Manifest,
    rows: list[dict[str, Any]],
    twice: list[dict[str, Any]],
    results: dict[str, Any] | None,
    heldout_images: int,
) -> list[str]:
    known = {(point.size_px, point.threshold, 0.0): point.accuracy for point in manifest.calibration} | {
        (point.size_px, 0.0, point.sure): point.accuracy
        for point in manifest.second_looks
        if point.again_px == manifest.full.size_px
    }
    ways = [*rows, *(row for row in twice if row["again_px"] == manifest.full.size_px)]
    measured = {(row["size_px"], row["threshold"], row.get("sure", 0.0)): row for row in ways}
    tested: dict[str, float | None] = {}
    lines = [
        "| preset | input | threshold | sure | looked at again | mean MACs | top-1 | held-out top-1 |",
        "|" + "---|" * 8,
    ]
    for name, preset in manifest.presets.items():
        way = preset.size_px, preset.threshold, preset.sure
        row = measured.get(way)
        tested[name] = None if row is None else row["top1"]
        test = [row.get("looked_again", 0.0), row["macs_ratio"], row["top1"]] if row else []
        cells = [f"{100 * value:.{digits}f} %" for value, digits in zip(test, (1, 1, 2), strict=False)]
        lines.append(
            f"| `{name}` | {preset.size_px} px | {preset.threshold:g} | {preset.sure:g} "
            f"| {' | '.join(cells or ['not measured'] * 3)} | {100 * known[way]:.2f} % |"
        )
    chosen = (
        "On the test images, but for the last column. They are the fastest ways, in one look or two, that lose, on "
        f"{heldout_images:,} held-out *training* images (`calibration.json`) and with {MARGIN} standard errors of that "
        "added, at most "
        + " and ".join(f"{100 * TOLERATED_LOSS[name]:g} points (`{name}`)" for name in ("balanced", "economy"))
        + " against threshold 0."
    )
    own = dense_row(rows, manifest.full.size_px)["top1"]
    return ["## Presets", "\n".join(lines), chosen, *(promised(tested, own, results) if results else [])]


def _second_looks(twice: list[dict[str, Any]], rows: list[dict[str, Any]], manifest: Manifest) -> list[str]:
    dense = dense_row(rows, manifest.full.size_px)["top1"]
    lines = ["| from | to | threshold | sure | looked at again | MACs decrease | top-1 | points lost to threshold 0 |"]
    lines.append("|" + "---|" * 8)
    lines += [
        f"| {row['size_px']} px | {row['again_px']} px | {row['threshold']:g} | {row['sure']:g} "
        f"| {100 * row['looked_again']:.1f} % | {100 * (1 - row['macs_ratio']):.1f} % | {100 * row['top1']:.2f} % "
        f"| {100 * (dense - row['top1']):.2f} |"
        for row in frontier(twice)
    ]
    return [
        "## In two looks",
        "A smaller input first, a larger one as well where its first label is less probable than `sure`; both looks "
        "counted, the same test images (`evaluation.json`). Where no cheaper two looks are as accurate:",
        "\n".join(lines),
    ]


def _lower(precision: Precision, points: Sequence[PrecisionPoint], full_px: int) -> list[str]:
    if not points:
        return []
    lines = [
        "| input | threshold | sure | again | top-1 | in float32 | same first label | same decisions | MACs "
        "| in float32 |",
        "|" + "---|" * 10,
    ]
    for point in points:
        shares = [point.top1, point.float32_top1, point.same_top1, point.same_decisions]
        costs = [point.macs_ratio, point.float32_macs_ratio]
        cells = [f"{100 * share:.2f} %" for share in shares] + [f"{100 * share:.1f} %" for share in costs]
        again = f"{point.again_px or full_px} px" if point.sure else "-"
        lines.append(f"| {point.size_px} px | {point.threshold:g} | {point.sure:g} | {again} | {' | '.join(cells)} |")
    return [
        f"## In {precision}",
        f"`anysize.{precision}.onnx` {LOWER[precision]}, from the same weights file. Beside float32 on the same "
        f"{points[0].images:,} test images (`{precision}-evaluation.json`, `python -m export.precision`); in two looks "
        "the decisions are whether to look again:",
        "\n".join(lines),
    ]


def _parity(parity: dict[str, dict[str, Any]]) -> str:
    lines = [
        "Torch's masked path against each graph in ONNX Runtime, over batch sizes and thresholds (`parity.json`); ties "
        "are masks that first differ where a score lies within rounding of its threshold:\n",
        "| graph | rows | max logit difference | mean | same top-1 | identical masks | ties |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in parity.items():
        lines.append(
            f"| `{name}` | {figures['rows']:,} | {figures['max_difference']:.1e} | {figures['mean_difference']:.1e} "
            f"| {100 * figures['top1_agreement']:.2f} % | {100 * figures['identical_masks']:.2f} % "
            f"| {100 * figures['ties']:.2f} % |"
        )
    return "\n".join(lines)


def _pictures(figures: Collection[str]) -> list[str]:
    shown = [f"![{what}](figures/{file})" for file, what in PICTURES.items() if file in figures]
    return ["## What it skips", "\n".join(shown)] if shown else []
