"""nginx and Prometheus as child processes on loopback, configured for pods that come and go."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.k8s.kubelet import Endpoints, free_port
from tests.k8s.queries import NAMESPACE
from tests.k8s.tools import tool

# One try a request: what a pod loses on its way out is lost, and seen. Connections to pods are kept, as proxies do.
_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream pods {{
    {servers}
    keepalive 16;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://pods;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_next_upstream off;
    }}
  }}
}}
"""


class Nginx:
    """A load balancer; `publish` gives it the pods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.port}"

    def publish(self, endpoints: Endpoints) -> None:
        """Route to these pods from now on; requests under way stay where they are."""
        # fails=0: nginx must not save us by hiding a pod that refuses connections
        lines = [f"server 127.0.0.1:{port} max_fails=0;" for _, port in endpoints] or ["server 127.0.0.1:9 down;"]
        text = _NGINX.format(folder=self._folder, servers="\n    ".join(lines), port=self.port)
        (self._folder / "nginx.conf").write_text(text)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        options = [
            "-p",
            str(self._folder),
            "-c",
            str(self._folder / "nginx.conf"),
            "-e",
            str(self._folder / "nginx.log"),
        ]
        self._process = await asyncio.create_subprocess_exec(tool("nginx"), *options)
        try:
            await answers(f"{self.url}/readyz")
            yield
        finally:
            process, self._process = self._process, None
            await _end(process)


class Prometheus:
    """A Prometheus that scrapes every pod once a second and evaluates the rendered alerts."""

    def __init__(self, folder: Path, alerts: dict[str, Any]) -> None:
        self._folder = folder
        self._targets = folder / "targets.json"
        self.port = free_port()
        self._targets.write_text("[]")
        (folder / "rules.yaml").write_text(yaml.safe_dump(alerts))
        discovery = {"files": [str(self._targets)], "refresh_interval": "1s"}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules.yaml")],
            "scrape_configs": [{"job_name": "skipvit", "file_sd_configs": [discovery]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))

    def publish(self, endpoints: Endpoints) -> None:
        """Scrape these pods from now on, with the labels that the Prometheus operator would give them."""
        targets = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": NAMESPACE, "pod": name}}
            for name, port in endpoints
        ]
        draft = self._targets.with_suffix(".draft")
        draft.write_text(json.dumps(targets))
        draft.rename(self._targets)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Scrape while the block runs."""
        options = [f"--config.file={self._folder / 'prometheus.yaml'}", f"--storage.tsdb.path={self._folder / 'tsdb'}"]
        options += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        process = await asyncio.create_subprocess_exec(tool("prometheus"), *options)
        try:
            await answers(f"http://127.0.0.1:{self.port}/-/ready")
            yield
        finally:
            await _end(process)

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that the expression gives now."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            url = f"http://127.0.0.1:{self.port}/api/v1/query"
            answer = (await client.get(url, params={"query": expression})).json()
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


async def answers(url: str, timeout_s: float = 60) -> None:
    """Wait until the URL answers with success."""
    async with asyncio.timeout(timeout_s), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(url)).is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        await process.wait()
