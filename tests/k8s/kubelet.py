"""A stand-in for what Kubernetes does with a Deployment: start and probe pods, tell the load balancer, roll over.

It reads the rendered manifest: probes, preStop, grace period, environment, rollout strategy. Pods are processes on
loopback ports. Load balancers hear of a change `lag_s` late, as kube-proxies and cloud load balancers do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.k8s.rendered import ROOT

Endpoints = list[tuple[str, int]]  # name and port of each pod that takes traffic
_TICK_S = 0.05


class Pod:
    """One process, from its start to its end."""

    def __init__(self, name: str, spec: dict[str, Any], environment: dict[str, str], log: Path) -> None:
        (self._container,) = spec["containers"]
        self._grace_s: float = spec["terminationGracePeriodSeconds"]
        self._environment = environment
        self._log = log
        self._probing: asyncio.Task[None] | None = None
        self.name = name
        self.port = free_port()
        self.ready = False
        self.terminating = False
        self.exit_code: int | None = None
        self.killed = False
        self.stopped_after_s = 0.0

    async def start(self, changed: Callable[[], None]) -> None:
        """Start the process; returns when its startup probe has passed. Readiness is probed from then on."""
        environment = os.environ | self._environment | {"SKIPVIT_PORT": str(self.port)}
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service", cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        probe = self._container["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            assert self._process.returncode is None, self._log.read_text()
            if await self._passes(probe):
                self._probing = asyncio.create_task(self._probe_readiness(changed))
                return
            await asyncio.sleep(probe["periodSeconds"])
        raise AssertionError(f"{self.name} didn't start in time:\n{self._log.read_text()}")

    async def stop(self, changed: Callable[[], None]) -> None:
        """What a kubelet does with a pod that is deleted; the endpoints are told at the same time, not before."""
        began_s = asyncio.get_running_loop().time()
        self.terminating = True
        changed()
        sleep_s = self._container["lifecycle"]["preStop"]["sleep"]["seconds"]
        await asyncio.sleep(sleep_s)
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), self._grace_s - sleep_s)
        except TimeoutError:
            self.killed = True
        await self.end()
        self.exit_code = self._process.returncode
        self.stopped_after_s = asyncio.get_running_loop().time() - began_s

    async def end(self) -> None:
        """End the process, whatever it does, and the probing of it."""
        if self._probing is not None:
            self._probing.cancel()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _probe_readiness(self, changed: Callable[[], None]) -> None:
        probe, failures = self._container["readinessProbe"], 0
        while True:
            passed = await self._passes(probe)
            failures = 0 if passed else failures + 1
            ready = passed or (self.ready and failures < probe["failureThreshold"])
            if ready != self.ready:
                self.ready = ready
                changed()
            await asyncio.sleep(probe["periodSeconds"])

    async def _passes(self, probe: dict[str, Any]) -> bool:
        url = f"http://127.0.0.1:{self.port}{probe['httpGet']['path']}"
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=probe.get("timeoutSeconds", 1)) as client:
                return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False


class Cluster:
    """A Deployment's pods and the endpoints of its Service."""

    def __init__(
        self,
        deployment: dict[str, Any],
        environment: dict[str, str],
        *,
        publish: Callable[[Endpoints], None],
        lag_s: float,
        folder: Path,
    ) -> None:
        self._spec = deployment["spec"]
        self._environment = environment
        self._publish = publish
        self._lag_s = lag_s
        self._folder = folder
        self._names = 0
        self.pods: list[Pod] = []
        self.gone: list[Pod] = []

    async def __aenter__(self) -> Cluster:
        await asyncio.gather(*(self._add() for _ in range(self._spec["replicas"])))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(pod.end() for pod in self.pods))

    async def rolling_restart(self) -> None:
        """One new pod, ready for minReadySeconds, for one old pod, until none is old."""
        strategy = self._spec["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 1, "maxUnavailable": 0}, "the only strategy that is played here"
        for old in list(self.pods):
            await self._add()
            await asyncio.sleep(self._spec["minReadySeconds"])
            await old.stop(self._changed)
            self.pods.remove(old)
            self.gone.append(old)

    async def _add(self) -> None:
        self._names += 1
        name = f"skipvit-{self._names}"
        pod = Pod(name, self._spec["template"]["spec"], self._environment, self._folder / f"{name}.log")
        self.pods.append(pod)
        await pod.start(self._changed)
        while not pod.ready:
            await asyncio.sleep(_TICK_S)

    def _changed(self) -> None:
        """Endpoints as they are now reach the load balancer later."""
        now = [(pod.name, pod.port) for pod in self.pods if pod.ready and not pod.terminating]
        asyncio.get_running_loop().call_later(self._lag_s, self._publish, now)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
