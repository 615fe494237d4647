"""One load test run against a running service (also `skipvit-loadtest`): accuracy and latency at one arrival rate.

    python -m loadtest --rate 20 --seconds 30 --mix threshold=0.4
    python -m loadtest --kind ramp --rate 30 --mix preset=balanced:3,preset=economy:1 --formats jpeg --sizes 512
    python -m loadtest --concurrency 8 --requests 500 --mix compute=0.5
    python -m loadtest --trace times.csv --cancel-rate 0.1 --deadlines-ms 200:1,none:1
    python -m loadtest --rate 200 --shard 0/4 --out 0.json        (one of four workers; then loadtest.merge)

Open loop: latency counts from when a request was due, whether or not the server kept up. The generator's own lateness
is told too; if its p99 is above 1 % of the p99 latency, the run is marked invalid. `python -m loadtest.sweep` measures
many rates and operating points and draws the pictures. Exits 1 if the server reset connections, answered garbage,
refused a request as invalid or failed (the result is written all the same), 2 for input that can't be used.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from loadtest import data, environment, tables
from loadtest.arrivals import KINDS, Arrivals, trace
from loadtest.mix import parse_shard
from loadtest.options import (
    add_mix,
    add_shared,
    add_target,
    parser,
    read_mix,
    read_target,
    refuse,
)
from loadtest.results import verdict, write_json
from loadtest.run import Job, run
from loadtest.targets import TargetError, check_labels

MODULE = "loadtest"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = parser(MODULE, __doc__)
    add_target(options)
    add_shared(options)
    add_mix(options)
    options.add_argument("--kind", choices=KINDS, default="poisson", help="of the arrivals (%(default)s)")
    options.add_argument("--rate", type=float, help="requests a second, on average (10)")
    options.add_argument("--seconds", type=float, default=30.0, help="of the schedule (%(default)s)")
    options.add_argument(
        "--burst-ratio", type=float, default=Arrivals.burst_ratio, help="rate in bursts over between (%(default)s)"
    )
    options.add_argument(
        "--ramp-from", type=float, default=Arrivals.ramp_from, help="a ramp's first rate over the mean (%(default)s)"
    )
    options.add_argument(
        "--trace", type=Path, help="replay times from a file, one number of seconds a line; --rate rescales"
    )
    options.add_argument("--concurrency", type=int, default=0, help="closed loop with this many callers")
    options.add_argument("--requests", type=int, help="with --concurrency: how many in all")
    options.add_argument(
        "--shard", type=parse_shard, default=(0, 1), metavar="I/N", help="send this worker's share only"
    )
    options.add_argument("--out", type=Path, help="JSON file to write, with every request's numbers")
    return options.parse_args(argv)


def read_job(options: argparse.Namespace) -> Job:
    """The job; raises ValueError."""
    arrivals = Arrivals(
        kind=options.kind,
        rate_rps=10.0 if options.rate is None else options.rate,
        duration_s=options.seconds,
        burst_ratio=options.burst_ratio,
        ramp_from=options.ramp_from,
    )
    job = Job(
        mix=read_mix(options),
        arrivals=arrivals,
        concurrency=options.concurrency,
        limit=options.requests,
        seed=options.seed,
        shard=options.shard,
        slo_s=options.slo_ms / 1e3,
        timeout_s=options.timeout,
    )
    if job.concurrency < 0 or (job.limit is not None and (job.limit < 1 or not job.concurrency)):
        raise ValueError("--requests is at least 1 and needs --concurrency above 0; an open loop ends by --seconds")
    return replace(job, trace_s=trace(options.trace, options.rate)) if options.trace else job


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = parse(argv)
    try:
        job = read_job(options)
        images = data.load(options.data, options.images, options.seed)
        target = read_target(options, images)
        model = check_labels(target, images)
    except (ValueError, TargetError, OSError) as error:
        return refuse(MODULE, error)
    command = ["python", "-m", MODULE, *(sys.argv[1:] if argv is None else argv)]
    about = {"environment": environment.describe(command), "model": {key: model[key] for key in ("name", "version")}}
    outcome = run(job, images, target, quiet=not sys.stderr.isatty())
    document = about | {"images": images.source, "job": job.describe(), "summary": outcome.summary}
    if options.out:
        write_json(options.out, document | {"records": outcome.records.to_json()})
    print(tables.text([tables.row(" ".join(job.points), outcome.summary)]))
    print(tables.details(outcome.summary))
    return verdict(MODULE, outcome)


if __name__ == "__main__":
    sys.exit(main())
