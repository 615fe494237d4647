"""The real service with the bundled model, as a process of its own on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_RUNNING = re.compile(r"running on (http://127\.0\.0\.1:\d+)")


@contextmanager
def real_service() -> Iterator[str]:
    """Serve until the block ends; yields the origin, once the service says that it listens there."""
    command = [sys.executable, "-m", "service", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := _RUNNING.search(line):
                break
        else:
            raise AssertionError(f"the service ended before it listened: {''.join(said)}")
        drained = threading.Thread(target=lambda pipe: [None for _ in pipe], args=(process.stderr,), daemon=True)
        drained.start()  # a full pipe would stop it
        yield found[1]
        process.terminate()
        process.wait(30)
        drained.join(30)
    finally:
        process.kill()
        process.wait(30)
        process.stderr.close()
