"""PURE: the model card (the bundle's README.md), every number of it from the bundle's own JSON files."""

from __future__ import annotations

from typing import Any

from service.artifact import Manifest


def render(
    manifest: Manifest, training: dict[str, Any], evaluation: dict[str, Any], parity: dict[str, dict[str, Any]]
) -> str:
    """The card as Markdown."""
    full = manifest.full
    gated = f"{len(manifest.gated_layers)} of {manifest.layers}"
    sections = [
        f"# {manifest.name}",
        f"A pruned ViT (`{manifest.architecture}` in timm, {full.size_px} px, {full.patches} patches, "
        f"{len(manifest.labels)} classes) with a gate in {gated} layers, `{manifest.attention}` attention. "
        f"Version `{manifest.version}`. Every number below is from the JSON files in this folder.",
        "## How it was made",
        _recipe(training, manifest),
        "## What it does",
        f"On {evaluation['images']:,} {evaluation['split']} images of {manifest.evaluation.data}, never trained or "
        f"tuned on (`evaluation.json`); MACs with everything counted, gates and keys and values of idle patches too, "
        f"against {full.dense_macs / 1e9:.3f} GMACs of the dense model:",
        _table(evaluation),
        f"*Gate accuracy* is how often a gate decides as the cosine label (threshold "
        f"{evaluation['cosine_threshold']}) says, over gated layers. Reproduce with "
        f"`python -m models.evaluate --checkpoint models/zoo/{manifest.name} --data DATA`.",
        _loss(evaluation),
        "## Presets",
        _presets(manifest),
        "Chosen on held-out *training* images (`calibration.json`): the gates never saw them, but the dense checkpoint "
        "this model started from did, so accuracies there are higher than on test images; differences are what counts.",
        "## Parity",
        _parity(parity),
        "## Limits",
        "Made for small photographs of the classes it knows; anything else is answered with one of them all the same. "
        "The backbone was never trained to have patches skipped and the gates' labels ignore the task, so accuracy "
        "falls fast as more is skipped: a model to build on, not one to prefer over its dense self.",
        "## Licence and origin",
        f"{manifest.origin.licence}. {manifest.origin.weights}",
    ]
    return "\n\n".join(sections) + "\n"


def _recipe(training: dict[str, Any], manifest: Manifest) -> str:
    config = training["config"]
    return (
        f"Started from `{training['init']}`, which stays frozen. Then `python -m models.train --stage "
        f"{config['stage']}`: each gate learns, by cross-entropy, whether its layer changes a patch (scaled cosine "
        f"similarity below {config['cosine_threshold']}). {training['training_images']:,} training images, "
        f"{config['epochs']} epochs, batch {config['batch_size']}, AdamW, learning rate {config['learning_rate']}, "
        f"seed {config['seed']}, {training['wall_s'] / 60:.0f} minutes on {training['device']} (`train.json`)."
    )


def _table(evaluation: dict[str, Any]) -> str:
    lines = [
        f"| score threshold | patches skipped (mean of {evaluation['patches']}) | MACs decrease "
        "| top-1 | top-5 | gate accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for row in evaluation["rows"]:
        lines.append(
            f"| {row['threshold']:g} | {row['skipped_patches']:.1f} | {100 * (1 - row['macs_ratio']):.1f} % "
            f"| {100 * row['top1']:.2f} % | {100 * row['top5']:.2f} % | {100 * row['gate_accuracy']:.1f} % |"
        )
    return "\n".join(lines)


def _loss(evaluation: dict[str, Any]) -> str:
    dense = evaluation["rows"][0]["top1"]
    worse = [row for row in evaluation["rows"] if 0.1 <= 1 - row["macs_ratio"] <= 0.5]
    spans = "; ".join(
        f"{100 * (dense - row['top1']):.1f} points at {100 * (1 - row['macs_ratio']):.0f} % fewer MACs" for row in worse
    )
    return f"Lost against computing everything: {spans or 'no row saves between 10 and 50 % of the MACs'}."


def _presets(manifest: Manifest) -> str:
    points = {(point.size_px, point.threshold): point for point in manifest.calibration}
    lines = ["| preset | input | threshold | mean MACs | calibration accuracy |", "|---|---|---|---|---|"]
    for name, preset in manifest.presets.items():
        point = points[preset.size_px, preset.threshold]
        lines.append(
            f"| `{name}` | {preset.size_px} px | {preset.threshold:g} | {100 * point.macs_ratio.mean:.1f} % "
            f"| {100 * point.accuracy:.2f} % |"
        )
    return "\n".join(lines)


def _parity(parity: dict[str, dict[str, Any]]) -> str:
    lines = [
        "Torch's masked path against each graph in ONNX Runtime, over batch sizes and thresholds (`parity.json`):\n",
        "| graph | rows | max logit difference | mean | same top-1 | identical masks |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in parity.items():
        lines.append(
            f"| `{name}` | {figures['rows']:,} | {figures['max_difference']:.1e} | {figures['mean_difference']:.1e} "
            f"| {100 * figures['top1_agreement']:.2f} % | {100 * figures['identical_masks']:.2f} % |"
        )
    return "\n".join(lines)
