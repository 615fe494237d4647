"""`make soak`: a server process under mixed traffic for minutes; does its memory or its tail latency drift?

    python -m tests.soak --duration-s 600

Good images of all kinds and sizes with random budgets, forms of several, photos of megabytes, whole and cut short,
tensors, hostile images, tight deadlines and clients that leave. Any answer that its request doesn't deserve, a request
without an answer, memory that grows or an exit code other than 0 fails it. The last line is the result as JSON. Tail
latency is printed, not judged: on a machine that isn't idle it says little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from tests.images import bad_images, encode, good_images
from tests.service.process import FAKE, running

REAL = [sys.executable, "-m", "service", "--port", "0"]
MAX_RSS_GROWTH_RATIO, MAX_RSS_GROWTH_BYTES = 0.15, 32 << 20  # both must be passed to fail
WARM_UP_RATIO = 0.1  # of the time; memory and latency count after it
REPORT_EVERY_S = 30.0
OVERLOADED = {429, 503}


class Question(NamedTuple):
    """One request, and the statuses that it deserves."""

    path: str
    content: dict[str, Any]  # for httpx
    expected: frozenset[int]
    leaves_after_s: float | None = None
    timed: bool = False


class Sample(NamedTuple):
    """A latency or a memory size, and when."""

    at_s: float
    value: float


class Tally:
    """What has happened so far."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.unexpected: list[str] = []
        self.left = 0
        self.latencies: list[Sample] = []
        self.rss: list[Sample] = []


def questions(model: dict[str, Any], seed: int) -> Iterator[Question]:
    """Random requests without end."""
    draw, good = random.Random(seed), list(good_images().values())
    bad = [data for data, _ in bad_images().values()]
    noise = np.random.default_rng(seed).integers(0, 256, (1500, 2000, 3), np.uint8)
    photo = encode(Image.fromarray(noise), "JPEG", quality=90)
    sizes, full, infer = model["sizes_px"], model["sizes_px"][0], f"/v2/models/{model['name']}/infer"
    answered = frozenset({200, *OVERLOADED})
    while True:
        kind = draw.choices(("one", "form", "photo", "tensor", "bad", "late", "leaves"), (58, 10, 2, 5, 10, 5, 10))[0]
        path = f"/v1/classify?size={draw.choice(sizes)}&threshold={draw.random():.3f}"
        path += f"&explain={draw.choices(('none', 'mask', 'overlay'), (8, 1, 1))[0]}"
        image: dict[str, Any] = {"content": draw.choice(good)}
        if kind == "one":
            yield Question(path, image, answered, timed=True)
        elif kind == "form":
            files = [("image", data) for data in draw.choices(good, k=draw.randint(1, 4))]
            yield Question("/v1/classify", {"files": files}, answered)
        elif kind == "photo":
            yield Question("/v1/classify", {"files": [("image", photo)]}, answered)
            yield Question("/v1/classify", {"content": photo[:-100_000]}, frozenset({422, *OVERLOADED}))
        elif kind == "tensor":
            yield Question(infer, tensor(full, draw.random()), answered)
        elif kind == "bad":
            refused = frozenset({413, 415, 422, *OVERLOADED})
            yield Question("/v1/classify", {"content": draw.choice(bad)}, refused)
        elif kind == "late":
            headers = {"X-Request-Timeout-Ms": str(draw.randint(1, 20))}
            yield Question(path, {**image, "headers": headers}, answered | {504})
        else:
            yield Question(path, image, answered, leaves_after_s=draw.random() * 0.03)


def tensor(size_px: int, threshold: float) -> dict[str, Any]:
    """An inference request of the Open Inference Protocol with binary data."""
    pixels = np.full((1, size_px, size_px, 3), 7, np.uint8).tobytes()
    shape, parameters = [1, size_px, size_px, 3], {"binary_data_size": len(pixels)}
    described = {"name": "images", "datatype": "UINT8", "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [described], "parameters": {"threshold": threshold}}).encode()
    return {"content": head + pixels, "headers": {"Inference-Header-Content-Length": str(len(head))}}


async def ask_until(end_s: float, client: httpx.AsyncClient, asked: Iterator[Question], tally: Tally) -> None:
    """One client: one request after the other."""
    while (began_s := time.monotonic()) < end_s:
        question = next(asked)
        try:
            async with asyncio.timeout(question.leaves_after_s):
                response = await client.post(question.path, **question.content)
        except TimeoutError:
            tally.left += 1
            continue
        except httpx.HTTPError as error:
            tally.unexpected.append(f"{question.path}: {error!r}")
            continue
        tally.statuses[response.status_code] += 1
        if response.status_code not in question.expected:
            tally.unexpected.append(f"{question.path}: {response.status_code} {response.text[:200]}")
        elif question.timed and response.status_code == 200:
            tally.latencies.append(Sample(began_s, time.monotonic() - began_s))


async def watch(pid: int, end_s: float, tally: Tally) -> None:
    """Note the process's memory ten times a second, and print where things are now and then."""
    report_s = time.monotonic() + REPORT_EVERY_S
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    while (now_s := time.monotonic()) < end_s:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        tally.rss.append(Sample(now_s, pages * page_bytes))
        if now_s >= report_s:
            report_s = now_s + REPORT_EVERY_S
            lately = [sample.value for sample in tally.latencies if sample.at_s > now_s - REPORT_EVERY_S]
            rss_mib, p99_ms = tally.rss[-1].value / 2**20, percentile(lately, 99) * 1e3
            print(
                f"{end_s - now_s:4.0f} s left: {tally.statuses.total()} answers, {len(tally.unexpected)} unexpected, "
                f"RSS {rss_mib:.0f} MiB, p99 {p99_ms:.0f} ms",
                flush=True,
            )
        await asyncio.sleep(0.1)


def percentile(values: list[float], rank: float) -> float:
    """Of nothing it is 0."""
    return float(np.percentile(values, rank)) if values else 0.0


def drift(samples: list[Sample], start_s: float, end_s: float, rank: float) -> tuple[float, float]:
    """A percentile over the first and over the last third of the time."""
    third_s = (end_s - start_s) / 3
    first = [value for at_s, value in samples if start_s <= at_s < start_s + third_s]
    last = [value for at_s, value in samples if at_s >= end_s - third_s]
    return percentile(first, rank), percentile(last, rank)


async def soak(url: str, pid: int, *, duration_s: float, concurrency: int, seed: int) -> dict[str, Any]:
    """Ask for so long; what came of it."""
    tally, start_s = Tally(), time.monotonic()
    end_s = start_s + duration_s
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        model = (await client.get("/v1/models")).json()["models"][0]
        asked = questions(model, seed)
        clients = [ask_until(end_s, client, asked, tally) for _ in range(concurrency)]
        await asyncio.gather(watch(pid, end_s, tally), *clients)
    counted_s = start_s + WARM_UP_RATIO * duration_s
    rss_first, rss_last = drift(tally.rss, counted_s, end_s, 100)
    p99_first_s, p99_last_s = drift(tally.latencies, counted_s, end_s, 99)
    return {
        "duration_s": duration_s,
        "concurrency": concurrency,
        "answers": tally.statuses.total(),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "clients_left": tally.left,
        "unexpected": len(tally.unexpected),
        "first_unexpected": tally.unexpected[:5],
        "rss_mib": {"first_third": round(rss_first / 2**20, 1), "last_third": round(rss_last / 2**20, 1)},
        "rss_drift_ratio": round(rss_last / rss_first - 1, 4),
        "p99_ms": {"first_third": round(p99_first_s * 1e3, 1), "last_third": round(p99_last_s * 1e3, 1)},
        "p99_drift_ratio": round(p99_last_s / p99_first_s - 1, 4) if p99_first_s else None,
        "memory_grew": rss_last - rss_first > max(MAX_RSS_GROWTH_BYTES, MAX_RSS_GROWTH_RATIO * rss_first),
    }


def main(argv: list[str] | None = None) -> int:
    """Start a server, soak it, end it; 0 if all was well."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m tests.soak", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration-s", type=float, default=600.0, help="how long to ask (default 600)")
    parser.add_argument("--concurrency", type=int, default=8, help="clients at once (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests' order (default 0)")
    parser.add_argument(
        "--fake", action="store_true", help="an engine that costs nothing, instead of the bundled model"
    )
    given = parser.parse_args(argv)
    environment = {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "0", "SKIPVIT_LOG_SAMPLE_RATIO": "0"}
    with running(FAKE if given.fake else REAL, environment) as server:
        result = asyncio.run(
            soak(
                server.url,
                server.process.pid,
                duration_s=given.duration_s,
                concurrency=given.concurrency,
                seed=given.seed,
            )
        )
        result["exit_code"], log = server.stop()
    result["tracebacks"] = log.count("Traceback")
    print(json.dumps(result))
    return int(bool(result["unexpected"] or result["memory_grew"] or result["exit_code"] or result["tracebacks"]))


if __name__ == "__main__":
    sys.exit(main())
