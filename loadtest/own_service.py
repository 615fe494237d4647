"""A service of the load test's own: started as a process with settings in its environment, ended by SIGTERM."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from loadtest.targets import TargetError

COMMAND = f"{shlex.quote(sys.executable)} -m service --port {{port}}"
READY = "/readyz"
READY_S, STOP_S = 180.0, 40.0
_POLL_S = 0.1


class Service(NamedTuple):
    """A ready service."""

    url: str
    pid: int
    ready_s: float  # from the start of its process to the first answer that it is ready


@contextmanager
def running(command: str, settings: Mapping[str, str], log: Path, ready: str = READY) -> Iterator[str]:
    """The URL of a ready service; see `started`."""
    with started(command, settings, log, ready) as service:
        yield service.url


@contextmanager
def started(
    command: str, settings: Mapping[str, str], log: Path, ready: str = READY, *, poll_s: float = _POLL_S
) -> Iterator[Service]:
    """A ready service on a free port, until the block ends.

    Args:
        command: how to start it; `{port}` is replaced.
        settings: added to the environment.
        log: where its output goes.
        ready: path that answers 200 once it takes traffic.
        poll_s: how often it is asked; what `ready_s` may be too long by.

    Raises:
        TargetError: it ended or didn't get ready; the message has the log's last line.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        start_s = time.monotonic()
        process = subprocess.Popen(
            shlex.split(command.format(port=port)),
            env=os.environ | dict(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the load test: it ends the service when it has written its results
        )
    try:
        _wait(process, url + ready, log, poll_s)
        yield Service(url, process.pid, time.monotonic() - start_s)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):  # workers that a server left behind, or that hung
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_ready(url: str) -> bool:
    """Whether this URL answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, poll_s: float) -> None:
    end = time.monotonic() + READY_S
    while not is_ready(url):
        if process.poll() is not None or time.monotonic() > end:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            how = "didn't get ready" if process.poll() is None else f"ended with exit code {process.returncode}"
            raise TargetError(f"the service {how}: {lines[-1]} (all of it: {log})")
        time.sleep(poll_s)  # another process, which tells nobody when it is ready


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
