"""A server in a process of its own, as an operator starts it: real signals, a real exit code.

`python -m tests.service.process` is such a process with the fake engine, which takes `ENGINE_MS` for a batch; to decode
an image takes `DECODE_MS` more than it does.
"""

from __future__ import annotations

import logging.config
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from service import decode_pool
from service.app import create_app
from service.logs import logging_config
from service.preprocess import read
from service.server import serve
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle

ROOT = Path(__file__).parents[2]
FAKE = [sys.executable, "-m", "tests.service.process"]


class Server:
    """A running server process; what it logs is collected as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = 0
        self._lines: list[str] = []
        self._listening = threading.Event()
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._collect, args=(process.stderr,), daemon=True)
        self._reader.start()
        assert self._listening.wait(120), "it didn't start within two minutes"
        assert self.port, f"it ended: {self.log}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 60) -> tuple[int, str]:
        """Send a signal and wait for the end; exit code and log."""
        self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code, self.log

    def _collect(self, stderr: IO[str]) -> None:
        for line in stderr:
            self._lines.append(line)
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                self._listening.set()
        self._listening.set()  # it has ended


@contextmanager
def running(
    command: list[str], environment: Mapping[str, str], *, preexec: Callable[[], None] | None = None
) -> Iterator[Server]:
    """Start a server and wait until it listens; whatever happens, it doesn't outlive the block."""
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True, preexec_fn=preexec
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def main() -> int:
    settings = Settings()
    logging.config.dictConfig(logging_config(settings.log_format))
    engine, engine_s = FakeEngine(), float(os.environ.get("ENGINE_MS", "0")) / 1e3
    engine.on_batch = lambda: time.sleep(engine_s)
    decode_s = float(os.environ.get("DECODE_MS", "0")) / 1e3

    def slow(*given: Any) -> NDArray[np.uint8]:
        time.sleep(decode_s)  # what a decoder in native code does: nobody can wake it, and no event ends it
        return read(*given)

    with mock.patch.object(decode_pool, "read", slow):
        return serve(create_app(settings, bundle=fake_bundle(), engine=engine), settings)


if __name__ == "__main__":
    sys.exit(main())
