"""A small open-loop client: real images at a constant rate, each request sent once, every outcome kept."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.k8s.rendered import ROOT

IMAGES = [file.read_bytes() for file in sorted((ROOT / "models/zoo/cifar100-vits14/samples").rglob("*.png"))]


class Load:
    """Requests that were sent, by how they ended."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/classify"
        self.outcomes: Counter[str] = Counter()  # "200", or what went wrong
        self.latencies_s: list[float] = []

    @property
    def lost(self) -> dict[str, int]:
        """Everything but answers."""
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "200"}

    @asynccontextmanager
    async def running(self, rate_rps: float) -> AsyncIterator[None]:
        """Send while the block runs; then wait for the answers that are due."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client, asyncio.TaskGroup() as requests:
            sending = asyncio.create_task(self._send(client, requests, rate_rps))
            try:
                yield
            finally:
                sending.cancel()

    async def _send(self, client: httpx.AsyncClient, requests: asyncio.TaskGroup, rate_rps: float) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for index, image in enumerate(itertools.cycle(IMAGES)):
            await asyncio.sleep(began_s + index / rate_rps - loop.time())
            requests.create_task(self._request(client, image))

    async def _request(self, client: httpx.AsyncClient, image: bytes) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            answer = await client.post(self._url, content=image, headers={"content-type": "image/png"})
            outcome = str(answer.status_code)
            if outcome == "200" and not answer.json()["results"][0]["predictions"]:
                outcome = "200 without predictions"
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1
        self.latencies_s.append(loop.time() - began_s)
