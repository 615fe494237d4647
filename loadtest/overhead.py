"""What the server adds to its engine: start, overhead for one caller and for 32, decoding; and memory that stays flat.

    python -m loadtest.overhead                    (some seven minutes; leave the machine alone meanwhile)
    python -m loadtest.overhead --seconds 5 --requests 1000 --out runs/overhead

Starts services of its own on a free port, because start time and memory are those of a process; `SKIPVIT_*` variables
reach them. The engine's time is the service's own word: `timing_ms.inference`, not rounded, of the batch an answer came
from. Values are printed beside their targets; a missed one is a result and no failure. The last line is the result as
JSON, without the curve. Exits 1 if a request wasn't answered with 200, 2 for input that can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest import added, data, environment, memory, objectives, own_service, plots, preprocessing, tables
from loadtest.callers import ask_all, engine_undisturbed
from loadtest.connection import FailedRequest, post
from loadtest.data import image_format
from loadtest.options import parser, refuse
from loadtest.own_service import Service
from loadtest.results import EXIT_FAILED, EXIT_OK, write_json
from loadtest.targets import Classify, TargetError

MODULE = "loadtest.overhead"
POINTS = ("threshold=0", "preset=balanced")  # for one caller; many ask for the first, which is one look each
CONCURRENCY = 32
# What is measured is the server's own cost, so nothing may change what is computed or leave a request unanswered:
# adaptive compute would give the engine less to do under load, the guard computes answers again while the engine is
# idle, and a full queue answers 429.
FIXED = {
    "SKIPVIT_ADAPTIVE": "false",
    "SKIPVIT_GUARD_RATIO": "0",
    "SKIPVIT_MAX_PENDING_IMAGES": "4096",
    "SKIPVIT_MAX_PENDING_WORK_S": "600",
    "SKIPVIT_DEFAULT_TIMEOUT_S": "600",
}
# One run of the engine after the other, so that the seconds of each are the engine's own.
_ONE_RUN = {"SKIPVIT_CONCURRENT_RUNS": "1"}
_STOP_AT_ONCE = {"SKIPVIT_DRAIN_DELAY_S": "0"}
_POLL_S = 0.01
_WARM_UP = 5  # requests of each caller


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    starts: int = 3
    alone: int = 300  # requests of the one caller
    seconds: float = 30.0  # of the closed loop
    repeats: int = 20  # of each photo, and of each batch that the engine computes undisturbed
    photos_px: tuple[tuple[int, int], ...] = ((640, 480), (2000, 1500), (4000, 3000), (8000, 6000))
    beside_px: tuple[int, int] = (4000, 3000)  # what is decoded while /healthz is polled
    requests: int = 10_000  # of the memory's curve


class Bench:
    """The parts of the measurement: each starts the services it needs and returns what goes into the result."""

    def __init__(self, plan: Plan, command: str, log: Path, *, quiet: bool) -> None:
        self._plan, self._command, self._log, self._quiet = plan, command, log, quiet
        self.images = data.load()
        self._png = self.images.encoded
        self._both = (*self._png, *(data.encode(image, "jpeg", None) for image in self._png))

    def start(self) -> dict[str, Any]:
        """Seconds to the first 200 of /readyz, and memory then. The first start fills the caches and counts not."""
        seconds, resident = [], []
        for _ in self._bar(range(self._plan.starts + 1), "starts"):
            with self._service({}) as service:
                seconds.append(service.ready_s)
                resident.append(memory.resident_mb(service.pid))
        ready_s = statistics.median(seconds[1:])
        return {"first_s": seconds[0], "each_s": seconds[1:], "ready_p50_s": ready_s, "resident_mb": resident[-1]}

    def serving(self) -> dict[str, Any]:
        """One caller, many callers, photos; all of one service."""
        with self._service(FIXED | _ONE_RUN) as service:
            url, model = service.url, Classify(service.url).describe()
            found = {"model": {name: model[name] for name in ("name", "version")}}
            alone = {query: asyncio.run(self._alone(url, query)) for query in self._bar(POINTS, "one caller")}
            together = asyncio.run(self._together(service))
            photos = [preprocessing.photo(*size) for size in self._bar(self._plan.photos_px, "making photos")]
            photos.insert(0, preprocessing.Photo("32 px PNG", 32 * 32 / 1e6, self._png[0], "image/png"))
            decoding = asyncio.run(preprocessing.decoding(url, self._bar(photos, "decoding"), self._plan.repeats))
            beside = preprocessing.photo(*self._plan.beside_px)
            held_up = asyncio.run(preprocessing.held_up(url, beside, self._plan.repeats))
        return found | {"alone": alone, "together": together, "decoding": decoding, "held_up": held_up}

    def memory(self) -> dict[str, Any]:
        """Memory over many requests of changing shapes, from the start of a process."""
        with self._service(FIXED) as service:
            sizes_px = [int(graph["size_px"]) for graph in Classify(service.url).describe()["graphs"]]
            asked = memory.requests(self._both, sizes_px, self._plan.requests)
            bar = tqdm(total=len(asked), desc="memory", unit=" requests", disable=self._quiet, mininterval=0.5)
            with bar:
                samples = asyncio.run(memory.watch(service.url, service.pid, asked, _step(bar)))
            most_mb = memory.resident_mb(service.pid, "VmHWM")
        found = memory.summarise(samples) if samples else {"not_measured": "it needs Linux's /proc"}
        return found | {"sizes_px": sizes_px, "process_most_mb": most_mb}

    async def _alone(self, url: str, query: str) -> dict[str, Any]:
        asked = _requests(query, self._png)
        await ask_all(url, asked, 1, limit=_WARM_UP)
        return added.alone(await ask_all(url, asked, 1, limit=self._plan.alone))

    async def _together(self, service: Service) -> dict[str, Any]:
        asked = _requests(POINTS[0], self._both)
        await ask_all(service.url, asked, CONCURRENCY, limit=CONCURRENCY * _WARM_UP)
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        answers = await ask_all(service.url, asked, CONCURRENCY, seconds=self._plan.seconds)
        wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        found = added.together(answers, wall_s)
        path, company = f"/v1/classify?{POINTS[0]}", self._png[: round(found["mean_batch_size"])]
        undisturbed = await engine_undisturbed(service.url, path, company, self._plan.repeats)
        return found | {
            "query": POINTS[0],
            "concurrency": CONCURRENCY,
            "generator_cpu_ms_per_request": 1e3 * cpu_s / len(answers),
            "generator_shares_cpus": _shares_cpus(service.pid),
            "undisturbed_images_per_s": undisturbed,
            "undisturbed_ratio": found["requests_per_s"] / undisturbed,
        }

    def _service(self, settings: Mapping[str, str]) -> AbstractContextManager[Service]:
        return own_service.started(self._command, {**settings, **_STOP_AT_ONCE}, self._log, poll_s=_POLL_S)

    def _bar(self, items: Sequence[Any], name: str) -> Any:
        return tqdm(items, desc=name, disable=self._quiet)


def main(argv: list[str] | None = None, plan: Plan | None = None) -> int:
    """Run the command line; a test's plan does less."""
    options = _parse(argv)
    plan = replace(plan or Plan(), seconds=options.seconds, requests=options.requests)
    command = ["python", "-m", MODULE, *(sys.argv[1:] if argv is None else argv)]
    result: dict[str, Any] = {"environment": environment.describe(command), "plan": asdict(plan), "fixed": FIXED}
    result["one_run"], result["variables"] = _ONE_RUN, _variables()
    try:
        if plan.requests < 1 or plan.seconds <= 0:
            raise ValueError("--requests is at least 1 and --seconds above 0")
        bench = Bench(plan, options.serve, options.out / "service.log", quiet=not sys.stderr.isatty())
        result |= {"images": bench.images.source, "start": bench.start()} | bench.serving() | {"memory": bench.memory()}
    except FailedRequest as error:
        refuse(MODULE, error)
        return EXIT_FAILED
    except (ValueError, TargetError, OSError) as error:
        return refuse(MODULE, error)
    held = objectives.targets(result)
    result["targets"] = [item._asdict() | {"met": item.met} for item in held]
    result = added.rounded(result)
    write_json(options.out / "overhead.json", result)
    if "curve" in result["memory"]:
        plots.save(memory.curve(result, objectives.RESIDENT_MB), options.out / "memory.png")
    print(tables.text(objectives.rows(held)))
    print("\n".join(objectives.details(result)))
    print(f"result: {options.out / 'overhead.json'}")
    result["memory"].pop("curve", None)
    print(json.dumps(result))
    return EXIT_OK


def _requests(query: str, images: Sequence[bytes]) -> list[bytes]:
    return [post(f"/v1/classify?{query}", image, f"image/{image_format(image)}") for image in images]


def _shares_cpus(pid: int) -> bool | None:
    """Whether this process may run where that one may; None where the system doesn't tell."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return bool(os.sched_getaffinity(0) & os.sched_getaffinity(pid))


def _variables() -> dict[str, str]:
    """The service's settings in this environment, but for keys."""
    return {name: value for name, value in os.environ.items() if name.startswith("SKIPVIT_") and "KEY" not in name}


def _step(bar: Any) -> Callable[[], None]:
    def step() -> None:
        bar.update()

    return step


def _parse(argv: list[str] | None) -> argparse.Namespace:
    options = parser(MODULE, __doc__)
    options.add_argument("--seconds", type=float, default=Plan.seconds, help="of the 32 callers (%(default)s)")
    options.add_argument("--requests", type=int, default=Plan.requests, help="of the memory's curve (%(default)s)")
    options.add_argument("--serve", default=own_service.COMMAND, help="how to start a service ({port} is replaced)")
    options.add_argument(
        "--out", type=Path, default=Path("loadtest/results/overhead"), help="folder for the result (%(default)s)"
    )
    return options.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
