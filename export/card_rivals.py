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
GOALS = {  # method -> whose goals it has, and what it is
    "joint": ("joint", "Best pair of size and threshold"),
    "served_looks": ("joint", "Two looks as they are served"),
    "served_chosen": ("joint", "The same, chosen on held-out images"),
    "gates_alone": ("gates_alone", "Threshold alone, at the full size"),
}


def _served_looks(results: dict[str, Any], evaluation: dict[str, Any], manifest: Manifest) -> list[dict[str, Any]]:
    """Two looks at the sizes that are served, some perhaps unknown to `results`: two more methods of its kind."""
    if not (tested := evaluation["second_looks"]):
        return []
    plain = {(row["size_px"], row["again_px"], row["sure"]): row for row in tested if row["threshold"] == 0}
    held_out = [point.model_dump() | {"top1": point.accuracy} for point in manifest.second_looks]

    def lost(row: dict[str, Any] | None) -> dict[str, Any] | None:
        return row and row | {"lost_points": 100 * (results["dense"]["top1"] - row["top1"])}

    best, picked = ([best_within(rows, share) for share in results["budgets"]] for rows in (tested, held_out))
    found = [row and plain.get((row["size_px"], row["again_px"], row["sure"])) for row in picked]
    known, largest = (max(point["size_px"] for point in results["runs"][0]["points"]), max(manifest.sizes_px))
    what = f"two looks as they are served, up to {largest} px" + f" (all above: {known} px)" * (largest > known)
    return [
        {"name": "served_looks", "what": what, "reached": list(map(lost, best))},
        {"name": "served_chosen", "what": "the same, chosen on held-out images", "reached": list(map(lost, found))},
    ]


def rivals(
    results: dict[str, Any], evaluation: dict[str, Any], manifest: Manifest, figures: Collection[str]
) -> list[str]:
    """What this checkpoint and every rival lose within each budget, and which of the goals that meets."""
    budgets, dense = [100 * share for share in results["budgets"]], results["dense"]
    methods = [*results["methods"], *_served_looks(results, evaluation, manifest)]
    reached = {method["name"]: method["reached"] for method in methods}
    lines = ["| points lost within | " + " | ".join(f"{share:.0f} % of MACs" for share in budgets) + " |"]
    lines += ["|" + "---|" * (len(budgets) + 1)]
    for method in methods:
        lines.append(f"| {method['what']} | " + " | ".join(map(_lost, method["reached"])) + " |")
    picture = ["![Accuracy against cost](figures/frontier.png)"] if "frontier.png" in figures else []
    facts = [
        f"- Dense: {100 * dense['top1']:.2f} % of {100 * results['goal_top1']:.1f} % wanted "
        f"({_verdict(dense['top1'] >= results['goal_top1'])}).",
        *(
            f"- {what}, points lost of those allowed: {_goals(results['goals_lost_points'][goals], found, budgets)}."
            for name, (goals, what) in GOALS.items()
            if any(found := reached.get(name, []))
        ),
        *(f"- {_lead(reached, name, budgets)}" for name in ("resize_mixed", "tuned_mixed", "two_step_tuned")),
        f"- {_first_choice(methods, budgets)}",
    ]
    return [
        "## Against its rivals",
        f"Points of accuracy lost against a dense model trained alike at {dense['size_px']} px "
        f"({100 * dense['top1']:.2f} %), on the same {results['images']:,} test images, with one standard error; in "
        f"brackets the share of its MACs that was used (`results.json`). {METHOD_NOTES}",
        "\n".join(lines),
        "\n".join([*picture, *facts]),
    ]


def _lost(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    error = f" ± {row['standard_error_points']:.1f}" if "standard_error_points" in row else ""
    return f"{row['lost_points']:.2f}{error} ({100 * row['macs_ratio']:.0f} %)"


def _goals(goals: list[float], reached: list[dict[str, Any] | None], budgets: list[float]) -> str:
    parts = []
    for goal, row, share in zip(goals, reached, budgets, strict=False):
        met = _verdict(row is not None and row["lost_points"] <= goal)
        lost = f"{row['lost_points']:.2f}" if row else "out of reach"
        parts.append(f"{lost} of {goal:g} at {share:.0f} % ({met})")
    return ", ".join(parts)


def _verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def _lead(reached: dict[str, list[dict[str, Any] | None]], rival: str, budgets: list[float]) -> str:
    """By how many points this checkpoint is ahead of a rival within each budget."""
    names = {
        "resize_mixed": "itself without skipping, images shared between sizes",
        "tuned_mixed": "dense models of one size each, images shared between them",
        "two_step_tuned": "two dense models in two steps",
    }
    pairs = [(a, b, share) for a, b, share in zip(reached["joint"], reached[rival], budgets, strict=True) if a and b]
    leads = [(round(b["lost_points"] - a["lost_points"], 2), share) for a, b, share in pairs]
    ahead = sum(lead > 0 for lead, _ in leads)
    where = {0: "Behind", len(leads): "Ahead of"}.get(ahead, f"Ahead at {ahead} of {len(leads)} budgets against")
    return (
        f"{where} {names[rival]}: " + ", ".join(f"{lead:+.2f} points at {share:.0f} %" for lead, share in leads) + "."
    )


def _first_choice(methods: list[dict[str, Any]], budgets: list[float]) -> str:
    """Which method loses least within each budget."""
    least = []
    for i in range(len(budgets)):
        found = [(method["reached"][i]["lost_points"], method["what"]) for method in methods if method["reached"][i]]
        least.append(min(found)[1] if found else "none")
    if len(set(least)) == 1:
        return f"Least is lost, at every budget, by {least[0]}."
    where = (f"{what} at {share:.0f} %" for what, share in zip(least, budgets, strict=True))
    return f"Least is lost by {', '.join(where)}."


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
