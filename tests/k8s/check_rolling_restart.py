"""Two real service processes behind a real nginx, scraped by a real Prometheus, rolled over under load.

Too slow for `make test`; `make k8s-test` runs it.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.kubelet import Cluster, Endpoints
from tests.k8s.load import Load
from tests.k8s.programs import Nginx, Prometheus
from tests.k8s.queries import Query, queries
from tests.k8s.rendered import one, settings

RATE_RPS = 6.0  # a fraction of what one pod takes on two cores
LAG_S = 3.0  # how late load balancers hear of a change
SETTLE_S = 5.0
# What the rest of the environment must be for pods that are processes on a small machine.
LOCAL = {"SKIPVIT_HOST": "127.0.0.1", "SKIPVIT_THREADS": "1"}


async def roll(deployment: dict[str, Any], environment: dict[str, str], folder: Path) -> tuple[Load, Cluster]:
    """One rolling restart under load, without Prometheus."""
    nginx = Nginx(folder)
    cluster = Cluster(deployment, environment, publish=nginx.publish, lag_s=LAG_S, folder=folder)
    load = Load(nginx.url)
    async with cluster:
        await asyncio.sleep(LAG_S)
        async with nginx.running(), load.running(RATE_RPS):
            await asyncio.sleep(SETTLE_S)
            await cluster.rolling_restart()
            await asyncio.sleep(SETTLE_S)
    return load, cluster


@pytest.mark.timeout(600)
async def test_a_rolling_restart_loses_no_request_and_every_query_has_an_answer(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path)
    prometheus = Prometheus(tmp_path, {"groups": one("monitoring", "PrometheusRule")["spec"]["groups"]})
    deployment = one("overlays/cpu", "Deployment")
    load = Load(nginx.url)

    def publish(endpoints: Endpoints) -> None:
        nginx.publish(endpoints)
        prometheus.publish(endpoints)

    environment = settings("overlays/cpu") | LOCAL
    async with Cluster(deployment, environment, publish=publish, lag_s=LAG_S, folder=tmp_path) as cluster:
        await asyncio.sleep(LAG_S)
        async with nginx.running(), prometheus.running(), load.running(RATE_RPS):
            await asyncio.sleep(SETTLE_S)
            old = {pod.name for pod in cluster.pods}
            await cluster.rolling_restart()
            await asyncio.sleep(SETTLE_S)
            await ask_everything(prometheus)
            served = await prometheus.query(
                'sum by (pod) (max_over_time(skipvit_requests_total{outcome="ok"}[10m])) > 0'
            )
            firing = await prometheus.query('ALERTS{alertstate="firing"}')
    latencies_ms = sorted(1000 * latency_s for latency_s in load.latencies_s)
    stopped = ", ".join(f"{pod.name} {pod.stopped_after_s:.1f} s" for pod in cluster.gone)
    print(
        f"\n{load.outcomes.total()} requests, lost {load.lost}; median {latencies_ms[len(latencies_ms) // 2]:.0f} ms, "
    )
    print(f"slowest {latencies_ms[-1]:.0f} ms; pods ended after {stopped}")
    assert load.lost == {}
    assert load.outcomes["200"] > 100
    assert {pod.name for pod in cluster.gone} == old
    assert {pod["metric"]["pod"] for pod in served} == old | {pod.name for pod in cluster.pods}
    assert [(pod.exit_code, pod.killed) for pod in cluster.gone] == [(0, False)] * len(old)
    assert firing == []


async def ask_everything(prometheus: Prometheus) -> None:
    """Every expression of dashboard, alerts and autoscaling runs, and those that aren't conditions give numbers."""
    silent = []
    for query in queries():
        found = await prometheus.query(query.filled(rate_window="20s"))
        if not is_condition(query) and not any(is_number(item) for item in found):
            silent.append(query)
    assert silent == []


def is_condition(query: Query) -> bool:
    """Alerts are silent when all is well."""
    return query.where.startswith("alert ")


def is_number(item: dict[str, Any]) -> bool:
    return math.isfinite(float(item["value"][1]))


@pytest.mark.timeout(600)
async def test_without_prestop_and_drain_delay_requests_are_lost(tmp_path: Path) -> None:
    """What the test above would see if the manifest didn't wait: it can fail."""
    deployment = one("overlays/cpu", "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] = 0
    environment = settings("overlays/cpu") | LOCAL | {"SKIPVIT_DRAIN_DELAY_S": "0"}
    load, _ = await roll(deployment, environment, tmp_path)
    print(f"\n{load.outcomes.total()} requests, lost {load.lost}")
    assert load.lost
