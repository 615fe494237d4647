"""Thresholds x arrival rates, adaptive compute off and on: one command, one table, four pictures.

    python -m loadtest.sweep --minutes 3
    python -m loadtest.sweep --thresholds 0,.2,.4,.6,.8 --rates .3x,.6x,.9x,1.2x --seconds 30
    python -m loadtest.sweep --url http://host:8000 --rates 5,10,20 --check loadtest/results/baseline.json

Capacity is found first, in a closed loop at every operating point; `0.9x` is nine tenths of the first point's. Without
--url a service that is ready on --port is measured, or else one is started, twice: with fixed and with adaptive
compute. A running one can't be restarted, so it is asked with `degrade=false` and `degrade=true`, if it knows that.
Every run is written to OUT/points as soon as it's done; the same command goes on where it was stopped. A run whose
generator was late is repeated once. Exits 1 if the server misbehaved or --check finds a regression, 2 for input that
can't be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest import check, data, environment, grid, own_service, report
from loadtest.arrivals import Arrivals
from loadtest.data import LabelledImages
from loadtest.grid import Cell, Spec, parse_rate
from loadtest.mix import Mix, point
from loadtest.options import add_shared, parser, refuse
from loadtest.results import EXIT_FAILED, EXIT_OK, read_json, verdict, write_json
from loadtest.run import Job, Outcome, run
from loadtest.targets import Classify, TargetError, check_labels, get_json

MODULE = "loadtest.sweep"
CLOSED_CALLERS = 16
FIXED, ADAPTIVE = {"SKIPVIT_ADAPTIVE": "0"}, {"SKIPVIT_ADAPTIVE": "1"}
NO_CACHE = {"SKIPVIT_CACHE_BYTES": "0"}  # images come back; remembered answers would measure nothing


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = parser(MODULE, __doc__)
    options.add_argument("--url", help="a running service; default: one ready on --port, else one is started")
    options.add_argument(
        "--port", type=int, default=8000, help="where to look for a running service, 0: nowhere (%(default)s)"
    )
    options.add_argument("--serve", default=own_service.COMMAND, help="how to start one ({port} is replaced)")
    add_shared(options)
    options.add_argument("--thresholds", default="0,.2,.4,.6", help="at the full input size (%(default)s)")
    options.add_argument("--presets", default="balanced,economy", help="(%(default)s)")
    options.add_argument("--points", default="", help="more operating points: size=84&threshold=0.25,compute=0.5")
    options.add_argument(
        "--rates", default=".4x,.7x,.9x,1.1x,1.5x,2x", help="of the capacity, or a second (%(default)s)"
    )
    options.add_argument(
        "--adaptive-point", default="preset=full", help="what adaptive compute is tried on (%(default)s)"
    )
    options.add_argument("--ramp", default="1.1x", help="mean rate of the ramp, from a quarter of it up; 0: none")
    options.add_argument("--seconds", type=float, default=45.0, help="of a steady run (%(default)s)")
    options.add_argument("--minutes", type=float, help="of the whole sweep, instead of --seconds")
    options.add_argument("--out", type=Path, default=Path("runs/loadtest"), help="folder for everything (%(default)s)")
    options.add_argument("--check", type=Path, help="baseline to hold the result's ratios against")
    return options.parse_args(argv)


@dataclass
class Sweep:
    """One sweep's state; `rows` grows by a cell at a time."""

    options: argparse.Namespace
    images: LabelledImages
    about: dict[str, Any]  # where and how it was measured; a cell's file is taken over only where that is the same
    rows: dict[str, dict[str, Any]]
    seconds: float = 0.0
    exit_code: int = EXIT_OK

    def measure(self, cell: Cell, target: Classify, parameters: str, label: str) -> bool:
        """Run one cell, unless its file is there already; whether the sweep can go on."""
        file = self.options.out / "points" / f"{cell.name}.json"
        job = self._job(cell, parameters)
        same = {name: self.about[name] for name in ("model", "images", "adaptive_by")}
        same |= {name: self.about["environment"][name] for name in ("commit", "cpu")}
        identity = json.loads(json.dumps(same | {"job": job.describe()}))  # as it comes back from a file
        if file.exists() and (found := read_json(file)).get("identity") == identity:
            self.rows[cell.name] = found["row"]
            return True
        outcome = run(job, self.images, target, label=label, quiet=True)
        lag = outcome.summary["lag"]
        again = not (outcome.cut or lag["valid"] or lag["ratio"] is None)
        if again:  # the generator was late: something else ran on its machine for a moment
            outcome = min(outcome, run(job, self.images, target, label=label, quiet=True), key=_lateness)
        code = verdict(MODULE, outcome)
        self.exit_code = max(self.exit_code, code)
        row = _row(cell, job, outcome) | {"repeated": again}
        self.rows[cell.name] = row
        if code == EXIT_OK:  # what went wrong is in the result, but is measured again when the sweep goes on
            write_json(file, {"identity": identity, "row": row, "records": outcome.records.to_json()})
        return not outcome.cut

    def _job(self, cell: Cell, parameters: str) -> Job:
        duration_s = grid.duration_s(cell, self.seconds)
        mix = Mix(points=((cell.query + parameters, 1.0),))
        job = Job(mix, seed=self.options.seed, slo_s=self.options.slo_ms / 1e3, timeout_s=self.options.timeout)
        if cell.rate is None:
            return replace(job, arrivals=Arrivals(duration_s=duration_s), concurrency=CLOSED_CALLERS)
        capacity = self.rows[next(iter(self.rows))]["summary"]["throughput_rps"]
        if not capacity:
            raise TargetError("the service answered nothing in the first run, so its capacity isn't known")
        kind, rate_rps = ("ramp" if cell.kind == "ramp" else "poisson"), round(cell.rate.rps(capacity), 2)
        arrivals = Arrivals(kind, rate_rps, duration_s, ramp_from=grid.RAMP_FROM)  # type: ignore[arg-type]
        return replace(job, arrivals=arrivals)

    def document(self, complete: bool) -> dict[str, Any]:
        """Everything measured so far, small enough to commit."""
        return self.about | {"seconds": self.seconds, "complete": complete, "cells": list(self.rows.values())}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = parse(argv)
    try:
        url = _find(options)
        images = data.load(options.data, options.images, options.seed)
        baseline = read_json(options.check) if options.check else None
        sweep = _sweep(options, images, url, sys.argv[1:] if argv is None else argv)
    except (ValueError, TargetError, OSError) as error:
        return refuse(MODULE, error)
    if not sweep.rows:
        return sweep.exit_code
    print(report.write(read_json(options.out / "results.json"), options.out))
    if baseline is not None and not sweep.exit_code:
        return check.print_verdict(read_json(options.out / "results.json"), baseline)
    return sweep.exit_code


def read_spec(options: argparse.Namespace, adaptive: bool) -> Spec:
    """What to measure; raises ValueError."""
    queries = [f"threshold={level}" for level in _split(options.thresholds)]
    queries += [f"preset={name}" for name in _split(options.presets)]
    points = tuple(dict.fromkeys(point(query) for query in [*queries, *_split(options.points)]))
    rates = tuple(parse_rate(rate) for rate in _split(options.rates))
    if not points or not rates:
        raise ValueError("a sweep needs at least one operating point and one rate")
    ramp = None if options.ramp in ("", "0") else parse_rate(options.ramp)
    return Spec(points, rates, point(options.adaptive_point), ramp, adaptive)


def _find(options: argparse.Namespace) -> str:
    """The running service's URL, or nothing if one is to be started."""
    if options.url:
        return str(options.url)
    local = f"http://127.0.0.1:{options.port}"
    return local if options.port and own_service.is_ready(local + own_service.READY) else ""


def _sweep(options: argparse.Namespace, images: LabelledImages, url: str, arguments: list[str]) -> Sweep:
    """Measure cell after cell; what is there is written after each."""
    spec = read_spec(options, adaptive=not url or _knows_degrade(url))
    planned, out = grid.cells(spec), options.out
    restarts = 0 if url else 1 + spec.adaptive
    seconds = grid.seconds_each(planned, options.minutes, restarts) if options.minutes else options.seconds
    if (out / "results.json").exists() and read_json(out / "results.json").get("complete"):
        for old in (out / "points").glob("*.json"):  # a finished sweep; this is a new one
            old.unlink()
    about = {
        "environment": environment.describe(["python", "-m", MODULE, *arguments]),
        "images": images.source,
        "reference": spec.points[0],
        "adaptive_point": spec.adaptive_point,
        "adaptive_by": ("setting" if not url else "degrade") if spec.adaptive else "none",
        "slo_s": options.slo_ms / 1e3,
    }
    sweep = Sweep(options, images, about, {}, seconds)
    total_s = sum(grid.duration_s(cell, seconds) for cell in planned)
    with tqdm(
        total=round(total_s),
        unit="s",
        desc="sweep",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} s, {remaining} left {postfix}",
    ) as bar:
        try:
            for adaptive in (False, True):
                wanted = [cell for cell in planned if cell.adaptive == adaptive]
                if wanted and not _half(sweep, wanted, url, adaptive, bar):
                    break
        except TargetError as error:
            if not sweep.rows:
                raise
            print(f"{MODULE}: {error}; what was measured until then is kept", file=sys.stderr)
            sweep.exit_code = EXIT_FAILED
    write_json(out / "results.json", sweep.document(complete=len(sweep.rows) == len(planned)))
    return sweep


def _half(sweep: Sweep, cells: list[Cell], url: str, adaptive: bool, bar: Any) -> bool:
    """All cells with adaptive compute off, or all with it on; whether the sweep can go on."""
    with _service(sweep, url, adaptive) as address:
        target = Classify(address)
        model = check_labels(target, sweep.images)
        sweep.about |= {"model": {key: model[key] for key in ("name", "version", "gated_layers", "presets")}}
        parameters = ""
        if sweep.about["adaptive_by"] == "degrade":
            parameters = f"&degrade={'true' if adaptive else 'false'}"
        for cell in cells:
            bar.set_postfix_str(f"{cell.query} {cell.rate or 'capacity'}{' adaptive' * adaptive}")
            if not sweep.measure(cell, target, parameters, cell.name):
                return False
            bar.update(round(grid.duration_s(cell, sweep.seconds)))
            write_json(sweep.options.out / "results.json", sweep.document(complete=False))
    return True


@contextmanager
def _service(sweep: Sweep, url: str, adaptive: bool) -> Iterator[str]:
    if url:
        yield url
        return
    settings = NO_CACHE | (ADAPTIVE if adaptive else FIXED)
    with own_service.running(sweep.options.serve, settings, sweep.options.out / "service.log") as address:
        yield address


def _lateness(outcome: Outcome) -> tuple[bool, bool, float]:
    """Lower is better: not cut, valid, little lag."""
    lag = outcome.summary["lag"]
    return bool(outcome.cut), not lag["valid"], lag["ratio"] or 0.0


def _row(cell: Cell, job: Job, outcome: Outcome) -> dict[str, Any]:
    summary = outcome.summary
    if cell.kind != "ramp":
        del summary["timeline"]
    shown = asdict(cell) | {"rate": str(cell.rate or "")}
    return shown | {"name": cell.name, "rate_rps": job.arrivals.rate_rps if cell.rate else None, "summary": summary}


def _knows_degrade(url: str) -> bool:
    try:
        parameters = get_json(f"{url}/openapi.json")["paths"]["/v1/classify"]["post"]["parameters"]
        return any(parameter["name"] == "degrade" for parameter in parameters)
    except (TargetError, KeyError, TypeError):
        return False


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
