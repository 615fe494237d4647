"""Record what a pod's metrics are at each arrival rate, for the simulation of the autoscaler. On an idle machine:

    .venv/bin/python -m tests.k8s.record_load

It starts the bundled model as a pod of overlays/cpu would be started, offers it rising rates until it can't follow, and
writes `recorded_load.csv` beside itself: one line for each second.
"""

from __future__ import annotations

import asyncio
import csv
import re
import tempfile
from pathlib import Path
from statistics import fmean

import httpx

from tests.k8s.kubelet import Cluster, Pod
from tests.k8s.load import Load
from tests.k8s.rendered import one, settings

FILE = Path(__file__).with_name("recorded_load.csv")
FIRST_RPS, RISE_RATIO, MOST_STEPS, OVERLOADED_STEPS = 2.0, 1.25, 20, 2
STEP_S, SETTLE_S = 10, 5
FIELDS = ("offered_rps", "elapsed_s", "pending_work_s", "busy_ratio", "answered_rps", "refused_rps")


async def main() -> None:
    """Record all steps."""
    deployment = one("overlays/cpu", "Deployment")
    deployment["spec"]["replicas"] = 1
    # One thread leaves a core to the client. What counts is the shape, from idle to overload, not the rate.
    environment = settings("overlays/cpu") | {"SKIPVIT_HOST": "127.0.0.1", "SKIPVIT_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, FILE.open("w", newline="") as out:
        lines = csv.DictWriter(out, FIELDS, lineterminator="\n")
        lines.writeheader()
        async with Cluster(deployment, environment, publish=print, lag_s=0, folder=Path(folder)) as cluster:
            (pod,) = cluster.pods
            overloaded = 0
            for step in range(MOST_STEPS):
                rows = await record(pod, round(FIRST_RPS * RISE_RATIO**step, 1))
                lines.writerows(rows)
                out.flush()
                print(rows[-1])
                overloaded += fmean(row["answered_rps"] for row in rows) < 0.9 * rows[0]["offered_rps"]
                if overloaded == OVERLOADED_STEPS:
                    return


async def record(pod: Pod, rate_rps: float) -> list[dict[str, float]]:
    """One line a second at one rate, once the queue has settled."""
    rows = []
    load = Load(f"http://127.0.0.1:{pod.port}")
    async with load.running(rate_rps):
        await asyncio.sleep(SETTLE_S)
        loop = asyncio.get_running_loop()
        before, before_s = await scrape(pod), loop.time()
        for second in range(1, STEP_S + 1):
            await asyncio.sleep(1)
            after, after_s = await scrape(pod), loop.time()
            went_s = after_s - before_s
            row = {"offered_rps": rate_rps, "elapsed_s": second, "pending_work_s": after["pending"]}
            row |= {"busy_ratio": min(1.0, (after["busy"] - before["busy"]) / went_s)}
            row |= {
                f"{name}_rps": (after[key] - before[key]) / went_s
                for name, key in (("answered", "ok"), ("refused", "no"))
            }
            rows.append({name: round(value, 3) for name, value in row.items()})
            before, before_s = after, after_s
    return rows


async def scrape(pod: Pod) -> dict[str, float]:
    """The metrics that matter here."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        text = (await client.get(f"http://127.0.0.1:{pod.port}/metrics")).text

    def value(line: str) -> float:
        found = re.search(rf"^{line}\S* (\S+)$", text, re.M)
        assert found, line
        return float(found[1])

    return {
        "pending": value("skipvit_pending_work_seconds"),
        "busy": value("skipvit_engine_busy_seconds_total"),
        "ok": value('skipvit_requests_total{[^}]*outcome="ok"'),
        "no": value('skipvit_requests_total{[^}]*outcome="overloaded"'),
    }


if __name__ == "__main__":
    asyncio.run(main())
