"""Where the process is in its life: starting, ready, draining. Shared by the server's signal handler and the probes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

EXIT_OK, EXIT_UNFINISHED, EXIT_USAGE = 0, 1, 2  # the process's exit codes

Phase = Literal["starting", "ready", "draining"]


class Lifecycle:
    """Moves forward only: who has begun to drain is never ready again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drain_began_s: float | None = None
        self.phase: Phase = "starting"
        self.finished_in_time = True  # False once accepted work had to be given up
        self.stop_accepting: Callable[[], None] = lambda: None  # closes a port beside the server's; set by who holds it
        self.abandon: Callable[[], None] = lambda: None  # fails what is still accepted; set by who holds the queue

    def become_ready(self) -> None:
        """Take traffic, unless draining has begun already."""
        if self.phase == "starting":
            self.phase = "ready"

    def begin_drain(self) -> None:
        """Ask for no more traffic; what still comes is answered."""
        if self.phase != "draining":
            self.phase = "draining"
            self._drain_began_s = self._clock()

    def draining_s(self) -> float:
        """Seconds since draining began; 0 before."""
        return 0.0 if self._drain_began_s is None else self._clock() - self._drain_began_s
