"""What the engine has yet to do, in predicted seconds: how long a queue is, and when an image would be answered.

That two runs share the engine is counted as processor sharing, where each of them gets half. It knows no future and
decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from service.backlog import Backlog
from service.batch import PATIENCE_S, Batch
from service.cost import Cost
from service.runner import Runners


class Workload:
    """Of one model's queue. 0 everywhere while nothing is known of what runs take."""

    def __init__(
        self,
        backlog: Backlog,
        taken: Sequence[Batch],
        runners: Runners,
        cost: Cost,
        lock: threading.RLock,
        *,
        max_batch_work_s: float,
        clock: Callable[[], float],
    ) -> None:
        """`backlog` waits, `taken` is with `runners`; whoever changes them holds `lock`."""
        self._backlog, self._taken, self._runners = backlog, taken, runners
        self._cost = cost
        self._lock = lock
        self._max_batch_work_s = max_batch_work_s
        self._clock = clock

    @property
    def pending_work_s(self) -> float:
        """Seconds that the engine will need for all pending images and the second looks that they will bring."""
        with self._lock:
            return self._after_run_s(self._backlog.macs)

    @property
    def wait_s(self) -> float:
        """Seconds until the engine would begin with what came now: 0 where a runner is free and nobody waits."""
        with self._lock:
            return 0.0 if self._begins_at_once else self.pending_work_s

    def run_s(self, size_px: int, threshold: float, images: int) -> float:
        """Seconds that such images take in the engine alone."""
        return self._cost.seconds(images * self._cost.macs(size_px, threshold))

    def finish_s(self, size_px: int, threshold: float, images: int, deadline: float) -> float:
        """Seconds until such images would be answered if they came now.

        Counts the rest of what runs, what is due before, and the company their own batch may have.
        """
        with self._lock:
            if self._begins_at_once:
                alone_s = self.run_s(size_px, threshold, images)
                return alone_s + min(alone_s, self._runners.left_s)
            ahead, company = self._backlog.macs_around(min(deadline, self._clock() + PATIENCE_S), size_px)
            company_s = min(self._cost.seconds(company), self._max_batch_work_s) if company else 0.0
            return self._after_run_s(ahead + images * self._cost.macs(size_px, threshold)) + company_s

    @property
    def _begins_at_once(self) -> bool:
        return not len(self._backlog) and self._runners.has_free

    def _after_run_s(self, macs: float) -> float:
        """Seconds until so many MACs are done, after what was taken and the second looks that it brings."""
        macs += sum(entry.later_macs for batch in self._taken for entry in batch.entries)
        return self._runners.left_s + (self._cost.seconds(macs) if macs else 0.0)
