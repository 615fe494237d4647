"""PURE: the part of the model card that says what the model was meant to reach, and whether it does.

Every target was set before training; every verdict follows from the numbers. It knows no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from export.calibrate import TOLERATED_LOSS

LEAD = 0.5  # points: the lead over smaller inputs that is wanted somewhere, beside one at every budget
GOALS = {  # method -> whose goals it has, and what it is
    "joint": ("joint", "Best pair of size and threshold"),
    "served_looks": ("joint", "Two looks as they are served"),
    "served_chosen": ("joint", "The same, chosen on held-out images"),
    "gates_alone": ("gates_alone", "Threshold alone, at the full size"),
}
RIVALS = {  # method -> what it is, whether a lead over it was a target
    "resize_mixed": ("itself at threshold 0, images shared between sizes", True),
    "tuned_mixed": ("dense models of one size each, images shared between them", True),
    "two_step_tuned": ("two dense models in two steps", False),
}
LEADERS = {
    "joint": "best pair of size and threshold",
    "served_looks": "two looks as served",
    "served_chosen": "two looks, chosen on held-out images",
}

Row = dict[str, Any]
Reached = Mapping[str, Sequence[Row | None]]


def verdict(met: bool) -> str:
    """Three words at most, the bad news in bold."""
    return "met" if met else "**not met**"


def targets(
    results: Row, methods: Sequence[Row], rows: Sequence[Row], threshold_max: float, spending: Mapping[str, Any]
) -> list[str]:
    """The section: `methods` with what each reaches, the evaluation's `rows`, the highest threshold that was trained.

    Args:
        spending: `models.adaptive`'s and `models.analyse`'s JSON by file name, where they are.
    """
    budgets, dense = [100 * share for share in results["budgets"]], results["dense"]
    reached = {method["name"]: method["reached"] for method in methods}
    facts = [
        f"- Dense: {100 * dense['top1']:.2f} % of {100 * results['goal_top1']:.1f} % wanted "
        f"({verdict(dense['top1'] >= results['goal_top1'])}).",
        *(
            f"- {what}, points lost of those allowed: {_goals(results['goals_lost_points'][goals], found, budgets)}."
            for name, (goals, what) in GOALS.items()
            if any(found := reached.get(name, []))
        ),
        *_monotone(rows, dense["size_px"], threshold_max),
        *_spending(spending, reached, budgets),
        f"- {_first_choice(methods, budgets)}",
    ]
    return [
        "## Targets",
        "What was wanted of the model before it was trained, and what it does, on the test images. Points are lost "
        f"against the dense model trained alike at {dense['size_px']} px ({100 * dense['top1']:.2f} %); presets are "
        "judged [below](#presets).",
        "\n".join(facts),
        "Points ahead of rivals within the same MACs, a mean over the images. Wanted was a lead at every budget over "
        f"simply shrinking the image, and one of {LEAD:g} points somewhere; picked on the test images, save where "
        "held-out ones are named:",
        _leads(reached, budgets),
    ]


def promised(tested: Mapping[str, float | None], own: float, results: Row) -> list[str]:
    """What presets were to lose at most, and lose: test top-1 by name, threshold 0's `own` at the full size."""
    dense, parts = results["dense"]["top1"], []
    for name, allowed in TOLERATED_LOSS.items():
        if allowed and (top1 := tested.get(name)) is not None:
            lost, beside = (round(100 * (full - top1), 2) for full in (dense, own))
            parts.append(
                f"`{name}`, which was to lose at most {100 * allowed:g} points, loses {lost:.2f} "
                f"({verdict(lost <= 100 * allowed)}), and {beside:.2f} against its own threshold 0 "
                f"({verdict(beside <= 100 * allowed)})"
            )
    start = f"Against the dense model trained alike ({100 * dense:.2f} %), on the test images, "
    return [f"{start}{'; '.join(parts)}."] if parts else []


def _goals(goals: Sequence[float], reached: Sequence[Row | None], budgets: Sequence[float]) -> str:
    parts = []
    for goal, row, share in zip(goals, reached, budgets, strict=False):
        met = verdict(row is not None and row["lost_points"] <= goal)
        lost = f"{row['lost_points']:.2f}" if row else "out of reach"
        parts.append(f"{lost} of {goal:g} at {share:.0f} % ({met})")
    return ", ".join(parts)


def _monotone(rows: Sequence[Row], full_px: int, threshold_max: float) -> list[str]:
    """Whether skipped patches rise with the threshold at every size, and how smoothly accuracy falls."""
    sizes = sorted({row["size_px"] for row in rows})
    by_threshold = sorted(rows, key=lambda row: float(row["threshold"]))
    steps = [step for px in sizes for step in pairwise(row for row in by_threshold if row["size_px"] == px)]
    stuck = {a["size_px"] for a, b in steps if b["skipped_patches"] <= a["skipped_patches"]}
    trained = [step for step in steps if step[1]["threshold"] <= threshold_max]
    own = [step for step in trained if step[0]["size_px"] == full_px]
    beyond = [_gain(*step) for step in steps if step[1]["threshold"] > threshold_max]
    if not own:
        return []
    fall = f"; beyond {threshold_max:g}, which was not trained, it falls by up to {-min(beyond):.0f}" if beyond else ""
    return [
        f"- Monotone: mean skipped patches rise with every threshold at {len(sizes) - len(stuck)} of {len(sizes)} "
        f"input sizes ({verdict(not stuck)}). Accuracy was to fall smoothly, for which no number was set: from one "
        f"measured threshold to the next it {_fall(own)}; at any size it {_fall(trained)}{fall}."
    ]


def _fall(steps: Sequence[tuple[Row, Row]]) -> str:
    """The largest fall and the largest rise of accuracy, and where."""

    def where(a: Row, b: Row) -> str:
        return f"{abs(_gain(a, b)):.2f} points ({a['size_px']} px, {a['threshold']:g} to {b['threshold']:g})"

    fall, *_, rise = sorted((steps[0], *steps), key=lambda step: _gain(*step))
    fallen = f"falls by at most {where(*fall)}" if _gain(*fall) < 0 else "never falls"
    return f"{fallen} and " + (f"rises by at most {where(*rise)}" if _gain(*rise) > 0 else "never rises")


def _gain(a: Row, b: Row) -> float:
    return 100 * (float(b["top1"]) - float(a["top1"]))


def _spending(spending: Mapping[str, Any], reached: Reached, budgets: Sequence[float]) -> list[str]:
    """What gates gain by spending more on some images than on others, and what two looks do."""
    found = []
    if forced := spending.get("adaptive.json"):
        gains = [(row["adaptive"]["top1"] - row["forced"]["top1"], row) for row in forced["rows"]]
        top1 = min(row["forced"]["top1"] for _, row in gains)
        error = 100 * math.sqrt(top1 * (1 - top1) / forced["images"])
        at = ", ".join(f"{100 * gain:+.2f} points at threshold {row['threshold']:g}" for gain, row in gains)
        found.append(
            f"- Compute by image, through the gates: against the same model with each image forced to the mean, at the "
            f"same mean MACs, {at} ({verdict(all(gain > 0 for gain, _ in gains))}; one standard error of either is "
            f"{error:.1f}; `figures/adaptive.json`)."
        )
    if drawn := spending.get("analysis.json"):
        easy, hard, rank = (drawn["adaptive"][name] for name in ("easy_mean", "hard_mean", "spearman"))
        found.append(
            f"- Compute follows difficulty, through the gates: at threshold {drawn['score_threshold']:g} easy images "
            f"take {100 * easy:.1f} % of the dense MACs, hard ones {100 * hard:.1f} %; rank correlation with the loss "
            f"at threshold 0 {rank:+.2f} ({verdict(hard > easy and rank > 0)}; {drawn['images']:,} images, "
            "`figures/analysis.json`)."
        )
    gained = {name: _lead(reached, name, "resize_mixed") for name in ("served_looks", "served_chosen")}
    if all(None not in leads for leads in gained.values()):
        looks, chosen = (", ".join(f"{lead:+.2f}" for lead in leads) for leads in gained.values())
        found.append(
            "- Compute by image, through two looks, which need no gates: at "
            f"{', '.join(f'{share:.0f}' for share in budgets)} % of the MACs, against the same checkpoint that gives "
            f"some images the larger of two inputs, whichever they are, {looks} points; chosen on held-out images, at "
            f"threshold 0 alone, {chosen}."
        )
    return found


def _lead(reached: Reached, own: str, rival: str) -> list[float | None]:
    """By how many points a method is ahead of a rival within each budget; None where either is out of reach."""
    pairs = zip(reached.get(own, [None]), reached[rival], strict=False)
    return [round(b["lost_points"] - a["lost_points"], 2) if a and b else None for a, b in pairs]


def _leads(reached: Reached, budgets: Sequence[float]) -> str:
    lines = ["| points ahead of | by | " + " | ".join(f"{share:.0f} % of MACs" for share in budgets) + " | target |"]
    lines += ["|" + "---|" * (len(budgets) + 3)]
    for rival, (whom, wanted) in RIVALS.items():
        for own, who in LEADERS.items():
            if not any(reached.get(own, [])):
                continue
            leads = _lead(reached, own, rival)
            known = [lead for lead in leads if lead is not None]
            met = len(known) == len(leads) and min(known) > 0 and max(known) >= LEAD
            cells = [f"{lead:+.2f}" if lead is not None else "-" for lead in leads]
            lines.append(f"| {whom} | {who} | {' | '.join(cells)} | {verdict(met) if wanted else 'none'} |")
    return "\n".join(lines)


def _first_choice(methods: Sequence[Row], budgets: Sequence[float]) -> str:
    """Which method loses least within each budget."""
    least = []
    for i in range(len(budgets)):
        found = [(method["reached"][i]["lost_points"], method["what"]) for method in methods if method["reached"][i]]
        least.append(min(found)[1] if found else "none")
    if len(set(least)) == 1:
        return f"Least is lost, at every budget, by {least[0]}."
    where = (f"{what} at {share:.0f} %" for what, share in zip(least, budgets, strict=True))
    return f"Least is lost by {', '.join(where)}."
