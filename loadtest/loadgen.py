"""MLPerf's own generator, LoadGen, against the running service: SingleStream, Offline and Server, with accuracy.

    python -m loadtest.loadgen --scenario SingleStream
    python -m loadtest.loadgen --scenario Offline --mix threshold=0.4
    python -m loadtest.loadgen --scenario Server --rate 20 --slo-ms 250

LoadGen draws the schedule, keeps the time and says whether the run is VALID by its rules (at least --seconds and enough
queries; Server: 99 % within the latency). It has no notion of accuracy beside a timed run, so answers are held against
their labels here. Needs the extra `loadgen`. Exits 1 if an answer is missing, 2 for input that can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp

from loadtest import data, environment, tables
from loadtest.client import Prepared, Shot
from loadtest.mix import Mix, point
from loadtest.options import DEFAULT_URL, add_shared, parser, refuse
from loadtest.results import EXIT_FAILED, EXIT_OK, write_json
from loadtest.summary import summarise
from loadtest.targets import Classify, TargetError, check_labels, collect

MODULE = "loadtest.loadgen"
SCENARIOS = ("SingleStream", "Offline", "Server")
OFFLINE_CALLERS = 32  # requests on their way at once: all of them together would be a full queue's refusals
_RESULT = re.compile(r"^Result is\s*:\s*(\w+)", re.M)


class Courier:
    """Takes LoadGen's samples to the service on an event loop of its own and reports each one back when it's done."""

    def __init__(self, requests: Sequence[Prepared], timeout_s: float) -> None:
        self.shots: list[Shot] = []
        self._requests, self._timeout_s = requests, timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._start_s = perf_counter()

    def __enter__(self) -> Courier:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's callback: these samples are due now."""
        due_s = perf_counter() - self._start_s
        for sample in samples:
            asyncio.run_coroutine_threadsafe(self._send(sample.id, sample.index, due_s), self._loop)

    async def _open(self) -> None:
        connector = aiohttp.TCPConnector(limit=OFFLINE_CALLERS)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=self._timeout_s)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def _send(self, sample_id: int, index: int, due_s: float) -> None:
        import mlperf_loadgen as lg

        request, status, body, error = self._requests[index], 0, b"", ""
        sent_s = perf_counter() - self._start_s
        try:
            async with self._session.post(request.url, data=request.body, headers=request.headers) as response:
                body, status = await response.read(), response.status
        except TimeoutError:
            error = "timeout"
        except (aiohttp.ClientError, OSError) as failure:
            error = f"connection: {type(failure).__name__}"
        self.shots.append(Shot(index, due_s, sent_s, perf_counter() - self._start_s, status, body, error))
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample_id, 0, 0)])  # LoadGen waits for every one, good or not


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = _parse(argv)
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        return refuse(MODULE, "LoadGen isn't installed: pip install -e '.[loadgen]'")
    try:
        query = point(options.mix)
        images = data.load(options.data, options.images, options.seed)
        target = Classify(options.url)
        model = check_labels(target, images)
    except (ValueError, TargetError, OSError) as error:
        return refuse(MODULE, error)
    requests = [target.prepare(query, image, None, None) for image in images.encoded]
    options.out.mkdir(parents=True, exist_ok=True)
    with Courier(requests, options.timeout) as courier:
        verdict = _start(options, courier, len(images))
    records = collect(target, courier.shots, images.labels, [(index, 0) for index in range(len(images))])
    summary = summarise(records, max(shot.done_s for shot in courier.shots), options.slo_ms / 1e3, [query])
    summary["lag"] |= {"ratio": None, "valid": verdict == "VALID"}  # LoadGen's word, not ours
    command = ["python", "-m", MODULE, *(sys.argv[1:] if argv is None else argv)]
    about = {"environment": environment.describe(command), "model": {key: model[key] for key in ("name", "version")}}
    scenario = {"scenario": options.scenario, "loadgen": verdict, "mix": Mix(((query, 1.0),)).points}
    write_json(options.out / "result.json", about | {"images": images.source} | scenario | {"summary": summary})
    print(tables.text([tables.row(f"{options.scenario} {query}", summary)]))
    print(f"LoadGen says {verdict}; its own summary: {options.out / 'mlperf_log_summary.txt'}")
    answered = summary["outcomes"].get("ok", 0) == summary["requests"]
    if not answered:
        print(f"{MODULE}: not every query was answered: {summary['errors']}", file=sys.stderr)
    return EXIT_OK if answered else EXIT_FAILED


def _start(options: argparse.Namespace, courier: Courier, images: int) -> str:
    """Let LoadGen run its scenario; VALID or INVALID, by its own log."""
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, options.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1e3 * options.seconds)
    settings.min_query_count = options.min_queries
    settings.server_target_qps = settings.offline_expected_qps = options.rate
    settings.server_target_latency_ns = round(1e6 * options.slo_ms)
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = options.seed + 1
    logs = lg.LogSettings()
    logs.log_output.outdir = str(options.out)
    logs.log_output.copy_summary_to_stdout = False
    under_test = lg.ConstructSUT(courier.issue, lambda: None)
    library = lg.ConstructQSL(images, images, lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(under_test, library, settings, logs)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(under_test)
    found = _RESULT.search((options.out / "mlperf_log_summary.txt").read_text())
    return found[1] if found else "INVALID"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    options = parser(MODULE, __doc__)
    options.add_argument("--url", default=DEFAULT_URL, help="%(default)s")
    add_shared(options)
    options.add_argument("--scenario", choices=SCENARIOS, default="Server", help="(%(default)s)")
    options.add_argument("--mix", default="threshold=0", help="one operating point (%(default)s)")
    options.add_argument("--rate", type=float, default=10.0, help="Server's rate; Offline's expected one (%(default)s)")
    options.add_argument("--seconds", type=float, default=60.0, help="at least (%(default)s)")
    options.add_argument("--min-queries", type=int, default=100, help="at least (%(default)s)")
    options.add_argument("--out", type=Path, default=Path("runs/loadgen"), help="folder for the logs (%(default)s)")
    return options.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
