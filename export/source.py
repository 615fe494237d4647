"""A trained checkpoint and what was measured of it: everything that a bundle is made of, but its graphs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.calibrate import dense_row, time_ratios
from export.int8 import RANGES
from export.to_onnx import ExportError
from models import checkpoint
from models.pruned_vit import PrunedViT
from service.artifact import MANIFEST, Origin, Precision

EVALUATION = "evaluation.json"
CALIBRATION = "calibration.json"
RESULTS = "results.json"  # of `models.results`; it and the pictures may be missing
LOWER: tuple[Precision, ...] = ("int8", "float16")
PRECISIONS: tuple[Precision, ...] = ("float32", *LOWER)
PRECISION = "{}-evaluation.json"  # of `export.precision`, for each of LOWER; it may be missing


@dataclass(frozen=True)
class Source:
    """A trained checkpoint and what was measured of it."""

    folder: Path
    model: PrunedViT
    evaluation: dict[str, Any]  # `models.evaluate` on the test images
    calibration: dict[str, Any]  # the same on held-out training images, at every size to serve
    training: dict[str, Any]  # `models.train`'s summary
    origin: Origin
    results: dict[str, Any] | None = None  # `models.results`: this checkpoint against its rivals
    ranges: dict[str, Any] | None = None  # of `export.int8`; without them, nor unseen images, there are no int8 graphs
    precisions: dict[Precision, dict[str, Any]] = field(default_factory=dict)  # `export.precision`: beside float32

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The input sizes to serve: those that were calibrated, the model's own first."""
        full_px = self.model.config.image_size_px
        others = {row["size_px"] for row in self.calibration["rows"]} - {full_px}
        return full_px, *sorted(others, reverse=True)


def read_source(folder: Path, origin: Origin | None) -> Source:
    """Read a checkpoint folder (or a bundle, to write it anew).

    Raises:
        CheckpointError, ExportError: something is missing; the message names the command that makes it.
        ValueError: nothing was measured at threshold 0 and the model's own size.
    """
    model = checkpoint.load(folder)
    if not model.config.gated_layers:
        raise ExportError(f"{folder} has no gates: train them with `python -m models.train --stage gates`")
    if origin is None:
        origin = Origin.model_validate(_measured(folder / MANIFEST, "give --origin and --licence")["origin"])
    measure = f"python -m models.evaluate --checkpoint {folder} --data DATA --sizes SIZES"
    calibration = _measured(folder / CALIBRATION, f"{measure} --split heldout --out {folder / CALIBRATION}")
    evaluation = _measured(folder / EVALUATION, f"{measure} --out {folder / EVALUATION}")
    training = _measured(folder / checkpoint.TRAINING, "train with `python -m models.train`")
    full_px = model.config.image_size_px
    for measured in (evaluation, calibration):
        dense_row(measured["rows"], full_px)
        time_ratios(measured["rows"])
        if not all("again_px" in row for row in measured.get("second_looks", [{}])):
            raise ExportError(
                f"{folder} was measured without two looks: evaluate anew with `{measure}`, test and heldout"
            )
    results, ranges = (_measured(folder / name, "") if (folder / name).exists() else None for name in (RESULTS, RANGES))
    files: dict[Precision, Path] = {name: folder / PRECISION.format(name) for name in LOWER}
    precisions = {name: _measured(file, "") for name, file in files.items() if file.exists()}
    if results and not _same_model(results, evaluation, full_px):
        raise ExportError(f"{folder / RESULTS} is of another model than {EVALUATION}: `python -m models.results` anew")
    return Source(folder, model, evaluation, calibration, training, origin, results, ranges, precisions)


def _same_model(results: dict[str, Any], evaluation: dict[str, Any], full_px: int) -> bool:
    """Whether both measured the same accuracy at threshold 0, to 0.1 points: runtimes may round differently."""
    points = next(run["points"] for run in results["runs"] if run["name"] == "joint")
    found = [dense_row(rows, full_px)["top1"] for rows in (points, evaluation["rows"])]
    return bool(abs(found[0] - found[1]) < 0.0011)


def _measured(file: Path, how: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise ExportError(f"{file} is missing: {how}") from None
    except ValueError as error:
        raise ExportError(f"{file} isn't JSON ({error}): {how}") from None
    return content
