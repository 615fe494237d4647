"""PURE: the part of the model card about rivals and short runs, from `models.results` and the own evaluation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from models.frontier import best_within
from service.artifact import Manifest

METHOD_NOTES = (
    "Every method's points are picked on the test images, save where held-out ones are named. *Two steps*: the small "
    "input first and, where the answer's probability is below a cut, a larger one as well; both are counted. *Shared*: "
    "some images go to one size, the rest to the next; linear in both. *Two looks* are "
    "two steps at the sizes and cuts that are served (`evaluation.json`)."
)


def methods_of(results: dict[str, Any], evaluation: dict[str, Any], manifest: Manifest) -> list[dict[str, Any]]:
    """The methods of `results`, and two looks at the sizes that are served, some perhaps unknown to it."""
    if not (tested := evaluation["second_looks"]):
        return list(results["methods"])
    plain = {(row["size_px"], row["again_px"], row["sure"]): row for row in tested if row["threshold"] == 0}
    held_out = [point.model_dump() | {"top1": point.accuracy} for point in manifest.second_looks]

    def lost(row: dict[str, Any] | None) -> dict[str, Any] | None:
        return row and row | {"lost_points": 100 * (results["dense"]["top1"] - row["top1"])}

    best, picked = ([best_within(rows, share) for share in results["budgets"]] for rows in (tested, held_out))
    found = [row and plain.get((row["size_px"], row["again_px"], row["sure"])) for row in picked]
    known, largest = (max(point["size_px"] for point in results["runs"][0]["points"]), max(manifest.sizes_px))
    what = f"two looks as they are served, up to {largest} px" + f" (all above: {known} px)" * (largest > known)
    return [
        *results["methods"],
        {"name": "served_looks", "what": what, "reached": list(map(lost, best))},
        {"name": "served_chosen", "what": "the same, chosen on held-out images", "reached": list(map(lost, found))},
    ]


def rivals(results: dict[str, Any], methods: list[dict[str, Any]], figures: Collection[str]) -> list[str]:
    """What this checkpoint and every rival lose within each budget."""
    budgets, dense = [100 * share for share in results["budgets"]], results["dense"]
    lines = ["| points lost within | " + " | ".join(f"{share:.0f} % of MACs" for share in budgets) + " |"]
    lines += ["|" + "---|" * (len(budgets) + 1)]
    for method in methods:
        lines.append(f"| {method['what']} | " + " | ".join(map(_lost, method["reached"])) + " |")
    return [
        "## Against its rivals",
        f"Points of accuracy lost against a dense model trained alike at {dense['size_px']} px "
        f"({100 * dense['top1']:.2f} %), on the same {results['images']:,} test images, with one standard error; in "
        f"brackets the share of its MACs that was used (`results.json`). {METHOD_NOTES}",
        "\n".join(lines),
        *(["![Accuracy against cost](figures/frontier.png)"] if "frontier.png" in figures else []),
    ]


def _lost(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    error = f" ± {row['standard_error_points']:.1f}" if "standard_error_points" in row else ""
    return f"{row['lost_points']:.2f}{error} ({100 * row['macs_ratio']:.0f} %)"


def published(table: dict[str, Any] | None) -> list[str]:
    """The published method on a backbone of ours: gates on cosine labels, in both attention modes, and an oracle."""
    if table is None:
        return []
    training, paper, device = table["training"], table["write_up"], table["training"]["device"].upper()
    labelled = {label["cosine_threshold"]: f"{100 * label['share']:.1f} %" for label in table["labelled_skip"]}
    lines = [
        "| gates | attention | cosine threshold | patches skipped (mean) | MACs decrease | top-1 | points lost |",
        "|" + "---|" * 7,
    ]
    for row in table["rows"]:
        lines.append(
            f"| {row['gate']} | `{row['attention']}` | {row['cosine_threshold']:g} | {row['skipped_patches']:.1f} of "
            f"{table['patches']} | {100 * (1 - row['macs_ratio']):.1f} % | {100 * row['top1']:.1f} % | "
            f"{row['lost_points']:.1f} ± {row['standard_error_points']:.1f} |"
        )
    for row in paper["rows"]:
        lost = 100 * (paper["dense_top1"] - row["top1"])
        lines.append(
            f"| the write-up's, ViT-B/16 | `{row['attention']}` | {row['cosine_threshold']:g} | "
            f"{row['skipped_patches']} of {paper['patches']} | {100 * (1 - row['macs_ratio']):.0f} % | "
            f"{100 * row['top1']:.1f} % | {lost:.1f} |"
        )
    asked = sorted({row["cosine_threshold"] for row in paper["rows"]}, reverse=True)
    return [
        "## The published method on this backbone",
        f"Gates alone, on cosine labels, the backbone of `{training['start']}` frozen at {table['image_size_px']} px "
        f"({100 * table['dense_top1']:.1f} %): epochs {training['epochs']}, {training['training_images']:,} images, on "
        f"a {device}; {table['images']:,} test images (`python -m models.published`, "
        f"`results.json`). At the write-up's cosine thresholds of {' and '.join(f'{each:g}' for each in asked)} the "
        f"labels would skip {' and '.join(labelled[each] for each in asked)} of the patches here, where neighbouring "
        "layers are less alike, so that lower ones were taken. The oracle skips what the labels say: what such gates "
        "would reach if they were never wrong.",
        "\n".join(lines),
    ]


def short_runs(groups: list[dict[str, Any]], figures: Collection[str]) -> list[str]:
    """What was tried in brief, with the standard error that goes with so few images; a table for each start."""
    parts = [part for short in groups for part in _short_runs(short)]
    picture = ["![Short runs](figures/ablations.png)"] if "ablations.png" in figures else []
    return ["## What was tried", *parts[:2], *picture, *parts[2:]]


def _short_runs(short: dict[str, Any]) -> list[str]:
    error, training = short["standard_error_points"], short["runs"][0]["training"]
    start = f" ({100 * short['start']['points'][0]['top1']:.1f} %)" if "start" in short else ""
    shares = " | ".join(f"at {100 * share:.0f} % of MACs" for share in short["shares"])
    lines = [f"| run | no patch skipped | {shares} |", "|" + "---|" * (len(short["shares"]) + 2)]
    for run in short["runs"]:
        cells = [run["points"][0]["top1"], *run["top1_at_shares"]]
        lines.append(
            f"| {run['what']} | " + " | ".join(f"{100 * top1:.1f} %" if top1 else "-" for top1 in cells) + " |"
        )
    epochs = f"{training['epochs']} epoch{'s' * (training['epochs'] != 1)}"
    where = "on a CPU" if training["device"] == "cpu" else f"on {training['device']}"
    return [
        f"Short runs at {short['size_px']} px, {epochs} of {training['training_images']:,} images each "
        f"from one dense start{start}, {where}, judged on {short['images']:,} held-out training images. One "
        f"standard error is {error:.1f} points, so differences below {2 * error:.1f} say little. On the lines between "
        "measured points:",
        "\n".join(lines),
    ]
