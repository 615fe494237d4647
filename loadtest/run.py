"""One run: a plan is drawn, bodies are encoded, requests are sent, answers are read and summed up."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from tqdm import tqdm

from loadtest import data
from loadtest.arrivals import Arrivals, Seconds, schedule
from loadtest.client import GIVE_UP_AFTER, Driver, Prepared
from loadtest.data import LabelledImages
from loadtest.mix import Mix, Plan, draw
from loadtest.records import Records
from loadtest.summary import summarise
from loadtest.targets import Target, collect

_CLOSED_PLAN = 4096  # requests a closed loop draws, then repeats


@dataclass(frozen=True)
class Job:
    """Everything one run is made of, but the images and the server."""

    mix: Mix = field(default_factory=Mix)
    arrivals: Arrivals = field(default_factory=Arrivals)  # of an open loop; a closed one takes its duration
    trace_s: Seconds | None = None  # due times of a trace, instead of `arrivals`
    concurrency: int = 0  # above 0: closed loop
    limit: int | None = None  # requests of a closed loop
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    slo_s: float = 0.25
    timeout_s: float = 60.0  # after which a caller takes a request for lost

    def describe(self) -> dict[str, Any]:
        """The job for the result file."""
        arrivals: dict[str, Any] = asdict(self.arrivals)
        if self.trace_s is not None:
            arrivals = {"kind": "trace", "requests": len(self.trace_s), "duration_s": self.duration_s}
        elif self.concurrency:
            arrivals = {"kind": "closed", "concurrency": self.concurrency, "duration_s": self.duration_s}
        mix = asdict(self.mix)
        return {"arrivals": arrivals, "mix": mix, "seed": self.seed, "shard": list(self.shard), "slo_s": self.slo_s}

    @property
    def duration_s(self) -> float:
        """Of the schedule."""
        return self.arrivals.duration_s if self.trace_s is None else float(self.trace_s[-1]) + 1e-3

    @property
    def points(self) -> tuple[str, ...]:
        """The operating points."""
        return tuple(name for name, _ in self.mix.points)


class Outcome(NamedTuple):
    """A run's records and what they come to."""

    records: Records
    summary: dict[str, Any]
    cut: str  # why it ended early, for a person; empty if it didn't. What was measured until then is here


def run(job: Job, images: LabelledImages, target: Target, *, label: str = "", quiet: bool = False) -> Outcome:
    """Do the job against a server; progress and time left on stderr unless quiet."""
    plan = make_plan(job, len(images))
    prepared = prepare(job.mix, plan, images, target)
    total = None if job.concurrency else len(prepared)
    with tqdm(total=total, desc=label or "requests", unit=" requests", disable=quiet, mininterval=0.5) as bar:
        driver = Driver(prepared, timeout_s=job.timeout_s, on_done=_step(bar))
        with _ending_on_signals(driver):
            if plan.due_s is None:
                shots = asyncio.run(driver.closed_loop(job.concurrency, job.duration_s, job.limit))
            else:
                shots = asyncio.run(driver.open_loop(plan.due_s))
    pairs = list(zip(plan.image.tolist(), plan.point.tolist(), strict=True))
    records = collect(target, shots, images.labels, pairs)
    cut = f"{GIVE_UP_AFTER} requests in a row got no answer" if driver.gave_up else ""
    return Outcome(records, summary_of(job, records), cut or ("interrupted" if driver.interrupted else ""))


def summary_of(job: Job, records: Records) -> dict[str, Any]:
    """The summary of a job's records; a closed loop's ends with its last answer, and lag means nothing to it."""
    duration_s = job.duration_s
    if job.limit is not None and len(records):
        duration_s = float((records["due_s"] + records["latency_s"]).max())
    summary = summarise(records, duration_s, job.slo_s, job.points)
    if job.concurrency:
        summary["lag"] |= {"ratio": None, "valid": bool(summary["latency_s"]["p50"])}
    return summary


def make_plan(job: Job, images: int) -> Plan:
    """Every request of the job, or this worker's share."""
    if job.concurrency:
        due_s = None
        count = job.limit or _CLOSED_PLAN
    else:
        due_s = schedule(job.arrivals, job.seed) if job.trace_s is None else job.trace_s
        count = len(due_s)
    return draw(job.mix, images, count, job.seed, due_s).shard(*job.shard)


def prepare(mix: Mix, plan: Plan, images: LabelledImages, target: Target) -> list[Prepared]:
    """Every request of the plan, its body encoded; each distinct body is made once."""
    bodies: dict[tuple[int, int, int], bytes] = {}
    prepared = []
    columns = (plan.image, plan.point, plan.format, plan.side, plan.deadline, plan.cancel)
    for image, point, kind, side, deadline, cancel in zip(*(column.tolist() for column in columns), strict=True):
        if (key := (image, kind, side)) not in bodies:
            bodies[key] = data.encode(images.encoded[image], mix.formats[kind][0], mix.sides_px[side][0])
        hang_up_s = mix.cancel_after_s if cancel else None
        query, deadline_ms = mix.points[point][0], mix.deadlines_ms[deadline][0]
        prepared.append(target.prepare(query, bodies[key], deadline_ms, hang_up_s))
    return prepared


def with_query(job: Job, name: str, value: str) -> Job:
    """The job with one more parameter at every operating point."""
    points = tuple((f"{query}&{name}={value}", weight) for query, weight in job.mix.points)
    return replace(job, mix=replace(job.mix, points=points))


def _step(bar: Any) -> Callable[[], None]:
    def step() -> None:
        bar.update()

    return step


@contextmanager
def _ending_on_signals(driver: Driver) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run early instead of losing what it measured."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: driver.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
