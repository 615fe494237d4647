"""Our service and its peers, one after the other, at the same rates: goodput and p99 side by side.

    python -m export.benchmark --bundle models/zoo/cifar100-vits14 --write-dense runs/dense
    python3 -m venv runs/peers-venv && runs/peers-venv/bin/pip install '.[peers]'
    python -m loadtest.peers --dense runs/dense/dense.onnx --python runs/peers-venv/bin/python
    python -m loadtest.peers --triton http://host:8000 --triton-model dense ...

Everyone gets the same requests (a form with one PNG), the same dense graph in the same runtime with the same threads,
and batches of the same size at most. `ours` computes everything (threshold 0); `ours, balanced` is that preset, in
float32 and in int8; `ours, adaptive` is the preset `full` with adaptive compute. Rates are multiples of our capacity at
threshold 0. Everyone has its turn, then everyone again: what a host's speed does in between, all meet, and the requests
of all rounds are summarised together. A peer that doesn't start is left out and named; exit code 1 then.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yarl import URL

from loadtest import data, environment, own_service, tables
from loadtest.arrivals import Arrivals
from loadtest.client import Prepared
from loadtest.data import image_format
from loadtest.grid import parse_rate
from loadtest.mix import Mix
from loadtest.options import add_shared, parser, refuse
from loadtest.records import Records, concatenate
from loadtest.results import EXIT_FAILED, EXIT_OK, write_json
from loadtest.run import Job, run, summary_of
from loadtest.targets import Answer, Classify, Oip, Target, TargetError, check_labels

MODULE = "loadtest.peers"
CLOSED_CALLERS = 16
_BOUNDARY = "skipvit-load-test"


class Form(Classify):
    """An image as the part `image` of a form, which all of them take: `/v1/classify` of ours, `/classify` of a peer."""

    def __init__(self, url: str, path: str = "/v1/classify") -> None:
        super().__init__(url)
        self._path = path

    def prepare(self, query: str, image: bytes, deadline_ms: int | None, hang_up_s: float | None) -> Prepared:
        """A peer has no operating points: an empty query."""
        url = URL(f"{self.url}{self._path}?{query}".rstrip("?"), encoded=True)
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
            f"Content-Type: image/{image_format(image)}\r\n\r\n"
        )
        body = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return Prepared(url, body, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, hang_up_s)

    def read(self, body: bytes) -> Answer:
        """Ours as it is; a peer's object, or list of one, holds the predictions."""
        document = json.loads(body)
        if isinstance(document, dict) and "results" in document:
            return super().read(body)
        first = document[0] if isinstance(document, list) else document
        return Answer([str(item["label"]) for item in first["predictions"]], {})


@dataclass(frozen=True)
class Contender:
    """One server to measure."""

    name: str
    command: str  # `{port}` is replaced; empty: it runs already
    settings: dict[str, str]
    path: str
    query: str = ""
    ready: str = own_service.READY


def contenders(options: argparse.Namespace, shared: dict[str, str]) -> list[Contender]:
    """Ours first: its capacity is 1x."""
    ours = {"SKIPVIT_CACHE_BYTES": "0", "SKIPVIT_THREADS": str(options.threads)}
    ours |= {"SKIPVIT_MAX_BATCH_SIZE": str(options.batch), "SKIPVIT_PRECISION": "float32"}  # as the others compute
    fixed, adaptive = ours | {"SKIPVIT_ADAPTIVE": "0"}, ours | {"SKIPVIT_ADAPTIVE": "1"}
    int8 = fixed | {"SKIPVIT_PRECISION": "int8"}
    python = shlex.quote(str(options.python))
    found = [
        Contender("ours", options.serve, fixed, "/v1/classify", "threshold=0"),
        Contender("ours, balanced", options.serve, fixed, "/v1/classify", "preset=balanced"),
        Contender("ours, balanced, int8", options.serve, int8, "/v1/classify", "preset=balanced"),
        Contender("ours, adaptive", options.serve, adaptive, "/v1/classify", "preset=full"),
    ]
    peers = {
        "litserve": (f"{python} -m loadtest.peers.litserve_app {{port}}", "/health", {}),
        "bentoml": (
            f"{python} -m bentoml serve loadtest.peers.bentoml_app:Classify --host 127.0.0.1 --port {{port}}",
            "/readyz",
            {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(options.out / "bentoml")},
        ),
        "ray": (f"{python} -m loadtest.peers.ray_app {{port}}", "/-/routes", {"RAY_USAGE_STATS_ENABLED": "0"}),
    }
    for name in [name for name in options.peers.split(",") if name]:
        if name not in peers:
            raise ValueError(f"unknown peer {name!r}: {', '.join(peers)}")
        command, ready, extra = peers[name]
        found.append(Contender(name, command, shared | extra, "/classify", ready=ready))
    return [*found, Contender("triton", "", {}, "")] if options.triton else found


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = _parse(argv)
    try:
        comparison = Comparison(options, ["python", "-m", MODULE, *(sys.argv[1:] if argv is None else argv)])
        everyone = contenders(options, comparison.shared())
        if options.rounds < 1:
            raise ValueError("--rounds is at least 1")
        comparison.measure(everyone[0])
    except (ValueError, TargetError, OSError) as error:
        return refuse(MODULE, error)
    result = comparison.result
    turns = [(round_, contender) for round_ in range(options.rounds) for contender in everyone]
    for round_, contender in turns[1:]:
        if contender.name in result["missing"]:
            continue
        try:
            comparison.measure(contender, round_)
        except TargetError as error:
            print(f"{MODULE}: {contender.name} is left out: {error}", file=sys.stderr)
            result["missing"].append(contender.name)
    write_json(options.out / "peers.json", result)
    rows = [tables.row(f"{row['server']} {row['rate']}", row["summary"]) for row in result["rows"]]
    (options.out / "peers.csv").write_text(tables.as_csv(rows))
    print(tables.text(rows))
    print(f"result: {options.out / 'peers.json'}")
    healthy = all(row["summary"]["healthy"] for row in result["rows"])
    return EXIT_OK if healthy and not result["missing"] else EXIT_FAILED


class Comparison:
    """Everyone's runs; the first one's capacity is 1x for all."""

    def __init__(self, options: argparse.Namespace, command: list[str]) -> None:
        if not options.dense.is_file():
            write = "python -m export.benchmark --bundle BUNDLE --write-dense FOLDER"
            raise ValueError(f"{options.dense} isn't there; write it: {write}")
        self._options = options
        self._images = data.load(options.data, options.images, options.seed)
        self._rates = [parse_rate(rate) for rate in options.rates.split(",")]
        self._labels = options.out / "labels.txt"
        self._capacity_rps: float | None = None  # ours, in the first round
        self.result: dict[str, Any] = {"environment": environment.describe(command), "images": self._images.source}
        self.result |= {"slo_s": options.slo_ms / 1e3, "rounds": options.rounds, "rows": [], "missing": []}
        self._cells: dict[tuple[str, str], Records] = {}  # of every round so far

    def shared(self) -> dict[str, str]:
        """What every peer is told."""
        model, labels = str(self._options.dense.resolve()), str(self._labels.resolve())
        told = {"PEER_MODEL": model, "PEER_LABELS": labels, "PYTHONPATH": str(Path.cwd())}
        return told | {"PEER_THREADS": str(self._options.threads), "PEER_BATCH": str(self._options.batch)}

    def measure(self, contender: Contender, round_: int = 0) -> None:
        """Start one server, find its capacity in a closed loop, then send every rate; written as it grows."""
        with self._serving(contender) as target:
            if not self.result["rows"]:
                model = check_labels(target, self._images)
                self.result["model"] = {key: model[key] for key in ("name", "version")}
                self._labels.write_text("\n".join(model["labels"]) + "\n")
            options = self._options
            job = Job(Mix(points=((contender.query, 1.0),)), slo_s=options.slo_ms / 1e3, seed=options.seed + round_)
            job = replace(job, timeout_s=options.timeout)
            closed = replace(job, arrivals=Arrivals(duration_s=options.seconds / 2), concurrency=CLOSED_CALLERS)
            self._run("capacity", contender, closed, target)
            self._capacity_rps = self._capacity_rps or self.result["rows"][0]["summary"]["throughput_rps"]
            if not self._capacity_rps:
                raise TargetError("it answered nothing, so there are no rates to compare at")
            for rate in self._rates:
                arrivals = Arrivals(rate_rps=round(rate.rps(self._capacity_rps), 2), duration_s=options.seconds)
                self._run(str(rate), contender, replace(job, arrivals=arrivals), target)

    def _run(self, rate: str, contender: Contender, job: Job, target: Target) -> None:
        records = run(job, self._images, target, label=f"{contender.name} {rate}").records
        name, before = (contender.name, rate), self._cells.get((contender.name, rate))
        self._cells[name] = pooled = records if before is None else concatenate([before, records.after(before)])
        row = next((row for row in self.result["rows"] if (row["server"], row["rate"]) == name), None)
        if row is None:
            self.result["rows"].append(row := {"server": contender.name, "rate": rate, "rounds_rps": []})
        alone = summary_of(job, records)
        row["rounds_rps"].append(alone["throughput_rps"])
        whole = replace(job.arrivals, duration_s=job.duration_s * len(row["rounds_rps"]))
        row["summary"] = summary_of(replace(job, arrivals=whole), pooled)
        del row["summary"]["timeline"]
        write_json(self._options.out / "peers.json", self.result)

    @contextmanager
    def _serving(self, contender: Contender) -> Iterator[Target]:
        options = self._options
        if not contender.command:
            yield Oip(options.triton, options.triton_model, options.size_px, self._labels.read_text().splitlines())
            return
        log = options.out / f"{contender.name.replace(', ', '-').replace(' ', '-')}.log"
        with own_service.running(contender.command, contender.settings, log, contender.ready) as url:
            yield Form(url, contender.path)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    options = parser(MODULE, __doc__)
    add_shared(options)
    options.add_argument("--dense", type=Path, required=True, help="the dense graph, weights beside it")
    options.add_argument("--python", type=Path, default=Path(sys.executable), help="where the peers are installed")
    options.add_argument("--peers", default="litserve,bentoml,ray", help="(%(default)s)")
    options.add_argument("--triton", help="a Triton (or KServe, MLServer) that serves the dense graph, by its URL")
    options.add_argument("--triton-model", default="dense", help="(%(default)s)")
    options.add_argument("--size-px", type=int, default=112, help="with --triton: the model's input side (%(default)s)")
    options.add_argument("--serve", default=own_service.COMMAND, help="how to start ours ({port} is replaced)")
    options.add_argument("--threads", type=int, default=2, help="of the runtime, for everyone (%(default)s)")
    options.add_argument("--batch", type=int, default=32, help="largest batch, for everyone (%(default)s)")
    options.add_argument("--rates", default=".4x,.8x,1.1x,1.5x", help="of our capacity, or a second (%(default)s)")
    options.add_argument("--seconds", type=float, default=45.0, help="of a run (%(default)s)")
    options.add_argument("--rounds", type=int, default=3, help="everyone's turns, pooled (%(default)s)")
    options.add_argument("--out", type=Path, default=Path("runs/peers"), help="(%(default)s)")
    return options.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
