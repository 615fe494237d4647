"""What was measured of one checkpoint and of its rivals, gathered into one `results.json` and two figures of it.

    python -m models.results --runs DIR --out FOLDER
    python -m models.results --short-runs DIR/short --out FOLDER
    python -m models.results --redraw --out FOLDER

DIR is what `models/study.mk` makes: NAME/train.json of every run named below (short ones in short/NAME), NAME/test.json
and NAME/test.npz (`models.evaluate --out` and `--predictions`) of RUNS, and the pair joint/heldout. Costs are shares of
the dense rival's MACs at the full size. Points lost are against the dense rival on the same images, with their standard
error. Every method's best point within a budget is picked on the test images, save where its description says held-out.
The second form adds a folder of short runs, whichever were made, to the results that FOLDER has. The third draws the
figures of those results anew; where FOLDER is a bundle, with its two looks and its rival that merges tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import figures, plots
from models.checkpoint import read_config, read_summary
from models.frontier import best_within, frontier
from models.macs import shape_of
from models.merging import merged_macs
from models.pruned_vit import build
from models.short_runs import SHORT, short_run, short_runs, training_of

FILE, FIGURES = "results.json", "figures"
EVALUATION, MERGING = "evaluation.json", "rival-accuracy.json"  # of a bundle; they may be missing
BUDGETS = (0.80, 0.65, 0.50, 0.35)  # shares of the dense MACs
GOALS = {"joint": (0.3, 0.7, 1.2, 3.0), "gates_alone": (0.3, 1.5)}  # points lost within the budgets, at most
GOAL_TOP1 = 0.898  # of the dense model: the published method's ViT-B/16
CUTS = tuple(np.linspace(0, 1, 51).round(2).tolist())  # of the first answer's probability
DENSE, SMALLER = "d112", ("d84", "d70", "d56")  # trained for one input size each, which is in the name
RUNS = {
    "joint": "this checkpoint: gates and backbone trained together, for every threshold and five input sizes",
    DENSE: "dense model trained at 112 px, the rival; at other sizes it is run untrained",
    "d84": "dense model trained at 84 px alone",
    "d70": "dense model trained at 70 px alone",
    "d56": "dense model trained at 56 px alone",
    "teacher": "dense model at 168 px: start and teacher of all of the above",
    "gates": "the published method, on the dense model it starts from: backbone frozen, gates trained on cosine labels",
}
METHODS = {
    "joint": "this checkpoint: input size and threshold",
    "joint_chosen": "the same, pair chosen on held-out training images",
    "gates_alone": "this checkpoint at 112 px: threshold alone",
    "resize_alone": "this checkpoint at threshold 0: input size alone",
    "resize_mixed": "the same, images shared between two sizes",
    "two_step_joint": "this checkpoint in two steps",
    "two_step_joint_chosen": "the same, chosen on held-out training images",
    "tuned": "dense models, one trained for each input size",
    "tuned_mixed": "the same, images shared between two sizes",
    "two_step_tuned": "two dense models in two steps",
}

Row = dict[str, Any]
Right = NDArray[np.bool_]


class Answers(NamedTuple):
    """R settings of one model, or of two in two steps, on n images."""

    point: NDArray[np.float64]  # (R, 2 or 4): input size in px, threshold, cut, the second input's size
    right: Right  # (R, n)
    probability: NDArray[np.float32]  # (R, n) of the answer
    macs_ratio: NDArray[np.float64]  # (R, n) share of the dense rival's MACs at the full size

    def rows(self, dense: Right | None = None) -> list[Row]:
        """Means over the images; with the dense rival's answers (n,) to the same ones, what is lost against them."""
        found = []
        for point, right, macs in zip(self.point.tolist(), self.right, self.macs_ratio, strict=True):
            row: Row = {"size_px": int(point[0]), "threshold": point[1]}
            row |= {"cut": point[2], "again_px": int(point[3])} if point[2:] else {}
            row |= {"macs_ratio": round(float(macs.mean()), 4), "top1": round(float(right.mean()), 4)}
            if dense is not None:
                lost = 100 * (dense.astype(float) - right)
                row["lost_points"] = round(float(lost.mean()), 2)
                row["standard_error_points"] = round(float(lost.std()) / math.sqrt(len(lost)), 2)
            found.append(row)
        return found

    def at(self, size_px: float, threshold: float = 0.0) -> int:
        """The index of a setting; ValueError unless it was measured once."""
        found = np.flatnonzero((self.point[:, :2] == (size_px, threshold)).all(1))
        if len(found) != 1:
            raise ValueError(f"{size_px:g} px at threshold {threshold:g} was measured {len(found)} times, not once")
        return int(found[0])


def two_steps(first: Answers, i: int, second: Answers, k: int, cuts: Sequence[float] = CUTS) -> Answers:
    """Setting i of `first` for every image; where its probability is below the cut, setting k of `second` on top."""
    again = first.probability[i] < np.array(cuts)[:, None]  # (cuts, n)
    return Answers(
        point=np.array([(*first.point[i, :2], cut, second.point[k, 0]) for cut in cuts]),
        right=np.where(again, second.right[k], first.right[i]),
        probability=np.where(again, second.probability[k], first.probability[i]),
        macs_ratio=first.macs_ratio[i] + again * second.macs_ratio[k],
    )


def two_steps_of_one(answers: Answers) -> Answers:
    """Each size first, then each larger one at the same threshold."""
    pairs = [
        (i, k)
        for i, (size_px, threshold) in enumerate(answers.point)
        for k, (larger_px, same) in enumerate(answers.point)
        if larger_px > size_px and same == threshold
    ]
    return joined([two_steps(answers, i, answers, k) for i, k in pairs])


def joined(parts: Sequence[Answers]) -> Answers:
    """All settings of all parts, in their order."""
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def between(rows: Sequence[Row], macs_ratio: float) -> Row | None:
    """What some images at one point of the frontier and the rest at the next give, for a cost; None below them all."""
    best = frontier(rows)[::-1]
    if not best or macs_ratio < best[0]["macs_ratio"]:
        return None
    cost, *columns = ([row[name] for row in best] for name in ("macs_ratio", "top1", "lost_points"))
    top1, lost = (float(np.interp(macs_ratio, cost, column)) for column in columns)
    return {"macs_ratio": min(macs_ratio, cost[-1]), "top1": round(top1, 4), "lost_points": round(lost, 2)}


def chosen(held_out: Sequence[Row], test: Sequence[Row], macs_ratio: float) -> Row | None:
    """The test row of the setting that is best within the cost on held-out images; both lists in one order."""
    best = best_within(held_out, macs_ratio)
    return next((row for row, held in zip(test, held_out, strict=True) if held is best), None)


def compare(answers: dict[str, Answers], held_out: Answers) -> tuple[dict[str, list[Row]], dict[str, list[Row | None]]]:
    """Each method's points on the test images, and of each of METHODS what it reaches within each budget."""
    joint, full, own = answers["joint"], answers[DENSE], own_px(DENSE)
    small = {name: answers[name].at(own_px(name)) for name in SMALLER}
    big = [i for i, (size_px, threshold) in enumerate(full.point) if size_px >= own and threshold == 0]
    dense = full.right[full.at(own)]
    rows = {"joint": joint.rows(dense), "two_step_joint": two_steps_of_one(joint).rows(dense)}
    rows["gates_alone"] = [row for row in rows["joint"] if row["size_px"] == own]
    rows["resize_alone"] = [row for row in rows["joint"] if row["threshold"] == 0]
    rows["tuned"] = [full.rows(dense)[k] for k in big]
    rows["tuned"] += [answers[name].rows(dense)[i] for name, i in small.items()]
    pairs = [two_steps(answers[name], i, full, k) for name, i in small.items() for k in big]
    rows["two_step_tuned"] = joined(pairs).rows(dense)
    reached = {name: [best_within(found, share) for share in BUDGETS] for name, found in rows.items()}
    for name, answer in (("joint", held_out), ("two_step_joint", two_steps_of_one(held_out))):
        reached[f"{name}_chosen"] = [chosen(answer.rows(), rows[name], share) for share in BUDGETS]
    reached["resize_mixed"] = [between(rows["resize_alone"], share) for share in BUDGETS]
    reached["tuned_mixed"] = [between(rows["tuned"], share) for share in BUDGETS]
    return rows, reached


def gather(runs: Path, data: str) -> Row:
    """Everything, as it is written; `data` names where the images are from."""
    macs = _read(runs / DENSE / "test.json")["dense_macs"]
    answers = {name: load_answers(runs / name / "test", macs) for name in RUNS}
    dense = answers[DENSE].right[answers[DENSE].at(own_px(DENSE))]
    points = {name: found.rows(dense) for name, found in answers.items()}
    rows, reached = compare(answers, load_answers(runs / "joint" / "heldout", macs))
    return {
        "data": data,
        "images": len(dense),
        "dense": {"size_px": own_px(DENSE), "macs": macs, "top1": round(float(dense.mean()), 4)},
        "budgets": BUDGETS,
        "goals_lost_points": GOALS,
        "goal_top1": GOAL_TOP1,
        "methods": [{"name": name, "what": what, "reached": reached[name]} for name, what in METHODS.items()],
        "short_runs": [short_runs(runs / "short") | {"start": short_run(read_summary(runs / DENSE), {"name": DENSE})}],
        "runs": [
            {
                "name": name,
                "what": what,
                "training": training_of(read_summary(runs / name)),
                "points": points[name],
            }
            for name, what in RUNS.items()
        ],
        "frontiers": {name: frontier(found) for name, found in rows.items()},
    }


def with_short_runs(results: Row, folder: Path) -> Row:
    """The results with those short runs that `folder` has, in place of what was added from the same start and seed."""
    names = [name for name in SHORT if (folder / name / "train.json").exists()]
    if not names:
        raise ValueError(f"{folder} has no short run: {', '.join(SHORT)}")
    new, (own, *added) = short_runs(folder, names), results["short_runs"]
    return results | {"short_runs": [own, *(old for old in added if _setting(old) != _setting(new)), new]}


def beside(folder: Path) -> dict[str, list[Row]]:
    """What else a bundle's folder has of its model on the same images: two looks as served, and token merging."""
    found: dict[str, list[Row]] = {}
    if (file := folder / EVALUATION).exists():
        found["served_looks"] = frontier(_read(file).get("second_looks", []))
    if (file := folder / MERGING).exists():
        shape = shape_of(build(read_config(folder)))
        asked = [(re.search(r"token merging r=(\d+)$", row["rival"]), row["top1"]) for row in _read(file)["rows"]]
        found["merging"] = [
            {"macs_ratio": merged_macs(shape, int(named[1])) / shape.dense, "top1": top1}
            for named, top1 in asked
            if named
        ]
    return found


def own_px(name: str) -> int:
    """The input size in a dense run's name."""
    return int(name.removeprefix("d"))


def load_answers(measured: Path, full_macs: int) -> Answers:
    """What `models.evaluate` wrote, `measured`.json and .npz; costs against `full_macs`."""
    with np.load(measured.with_suffix(".npz")) as arrays:
        macs_ratio = arrays["macs_ratio"].astype(float) * (
            _read(measured.with_suffix(".json"))["dense_macs"] / full_macs
        )
        return Answers(arrays["point"], arrays["answer"] == arrays["label"], arrays["probability"], macs_ratio)


def dumps(results: Row) -> str:
    """JSON with a line for each point."""
    text = json.dumps(results, indent=1)
    return re.sub(r"[{\[][^{}\[\]]*[}\]]", lambda inner: " ".join(inner.group().split()), text) + "\n"


def _setting(short: Row) -> tuple[Any, ...]:
    training = short["runs"][0]["training"]
    return short["size_px"], training["start"], training["epochs"], training["training_images"], training.get("seed", 0)


def _read(file: Path) -> Row:
    return dict(json.loads(file.read_text()))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for runs that are missing or don't fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--runs", type=Path, help="folder with the files of all runs")
    source.add_argument("--short-runs", type=Path, help="folder of short runs, to add to what --out has")
    source.add_argument("--redraw", action="store_true", help="the figures alone, of what --out has")
    parser.add_argument("--data", help="what the results call the test images; default: as the evaluation does")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    options = parser.parse_args(argv)
    try:
        if options.short_runs:
            results = with_short_runs(_read(options.out / FILE), options.short_runs)
        elif options.redraw:
            results = _read(options.out / FILE)
        else:
            results = gather(options.runs, options.data or _read(options.runs / DENSE / "test.json")["data"])
        more = {} if options.short_runs else beside(options.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"models.results: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    (options.out / FIGURES).mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        (options.out / FILE).write_text(dumps(results))
    if not options.short_runs:  # what is added is in no picture
        drawn = {"frontier": plots.frontier(results, more), "ablations": plots.ablations(results)}
        for name, figure in drawn.items():
            figures.save(figure, options.out / FIGURES / f"{name}.png")
    print(options.out / (FIGURES if options.redraw else FILE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
