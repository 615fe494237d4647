"""What a request will run with: what it asked for, less under load, less still to make its deadline, or a refusal.

It knows the model's table, the queue's prediction and the controller's level; no HTTP and no future.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

from service.artifact import Manifest
from service.budget import Choice, cheaper, expected
from service.controller import Controller
from service.errors import DeadlinePassed, Overloaded
from service.settings import PresetName

_FREE_IMAGES = 2  # at full compute, who wait for each other where nothing can be called a queue
_RUNGS = 8  # cheaper choices tried for a deadline
_REMEMBERED = 1024  # choices whose expected time is kept, and cheaper ones that were found


class Forecast(Protocol):
    """What the planner asks the queue."""

    @property
    def wait_s(self) -> float:
        """Seconds until the engine would begin with what came now."""
        ...

    def finish_s(self, size_px: int, threshold: float, images: int, deadline: float) -> float:
        """Seconds until such images would be answered if they came now; 0 while nothing is known."""
        ...

    def run_s(self, size_px: int, threshold: float, images: int) -> float:
        """Seconds that such images take in the engine alone; 0 while nothing is known."""
        ...


class Plan(NamedTuple):
    """What a request runs with."""

    choice: Choice
    degraded: bool  # whether that is less than it asked for


class Planner:
    """Plans the requests of one model."""

    def __init__(
        self,
        manifest: Manifest,
        queue: Forecast,
        controller: Controller,
        *,
        min_compute: Mapping[PresetName, float],
        looks_ratio: Callable[[], float] = lambda: 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What plans the requests of a model.

        Args:
            min_compute: the share of the dense time that load may lower each preset to; absent, not at all.
            looks_ratio: so many times as many images are looked at again, of late, as the tables say.
        """
        # Most requests ask for the same few, and are lowered in the controller's few steps.
        self._expected = lru_cache(_REMEMBERED)(partial(expected, manifest))
        self._cheaper = lru_cache(_REMEMBERED)(partial(cheaper, manifest))
        self._full_px = manifest.full.size_px
        self._queue = queue
        self._controller = controller
        self._min_compute = min_compute
        self._looks_ratio = looks_ratio
        self._clock = clock

    @property
    def level(self) -> float:
        """The controller's level, now."""
        free_s = self._queue.run_s(self._full_px, 0.0, _FREE_IMAGES)
        self._controller.observe(self._clock(), self._queue.wait_s, free_s)
        return self._controller.level

    def plan(
        self,
        wanted: Choice,
        *,
        bound: PresetName,
        by_load: bool,
        by_deadline: bool,
        deadline: float,
        images: int = 1,
        size_px: int | None = None,
    ) -> Plan:
        """What to run with.

        Args:
            wanted: what the request asked for.
            bound: the preset whose minimum holds for it.
            by_load, by_deadline: what may lower its spending.
            deadline: the clock's time after which nobody wants the answer.
            images: how many it brings.
            size_px: the only size it can run at, if its images came at a size.

        Raises:
            Overloaded: the queue is too long for the deadline; later it would do.
            DeadlinePassed: the deadline is too short even for an idle engine.
        """
        looks_ratio = round(self._looks_ratio(), 1)
        ratio = self._expected(wanted, looks_ratio=looks_ratio).time_ratio
        minimum = self._min_compute.get(bound, 1.0)
        share = self._controller.share(ratio, minimum) if self.level > 0 and by_load else ratio
        lower = partial(self._cheaper, size_px=size_px, looks_ratio=looks_ratio)
        choice = lower(wanted, share) if share < ratio else wanted
        if not self._makes(choice, images, deadline):
            in_time = self._in_time(choice, share, minimum, images, deadline, lower) if by_deadline else None
            if in_time is None:
                raise self._refusal(choice, images, deadline, may_be_lowered=not by_deadline)
            choice = in_time
        return Plan(choice, degraded=choice != wanted)

    def _makes(self, choice: Choice, images: int, deadline: float) -> bool:
        return self._clock() + self._queue.finish_s(choice.size_px, choice.threshold, images, deadline) <= deadline

    def _in_time(
        self,
        choice: Choice,
        share: float,
        minimum: float,
        images: int,
        deadline: float,
        lower: Callable[[Choice, float], Choice],
    ) -> Choice | None:
        """The dearest of a few cheaper choices that makes the deadline; a second look is left to find its room."""
        for rung in range(1, _RUNGS + 1):
            found = lower(choice, share - rung / _RUNGS * max(0.0, share - minimum))
            if self._makes(found, images, deadline):
                return found
        return None

    def _refusal(
        self, choice: Choice, images: int, deadline: float, *, may_be_lowered: bool
    ) -> Overloaded | DeadlinePassed:
        """`may_be_lowered`: there is a way to say that it may, which wasn't taken; else the least was too much."""
        left_s = max(0.0, deadline - self._clock())
        alone_s = self._queue.run_s(choice.size_px, choice.threshold, images)
        if alone_s >= left_s:  # both are 0 where nothing is known and the deadline has passed
            mend = ", ask for less compute, or allow it with degrade=true" if may_be_lowered else ""
            return DeadlinePassed(
                f"the deadline leaves {left_s * 1e3:.0f} ms; inference alone takes about {alone_s * 1e3:.0f} ms"
                f"{'' if may_be_lowered else ', and the least that it may be lowered to too long as well'}: "
                f"allow more time{mend}"
            )
        wait_s = self._queue.finish_s(choice.size_px, choice.threshold, images, deadline)
        return Overloaded(
            f"the deadline leaves {left_s * 1e3:.0f} ms and the answer would take about {wait_s * 1e3:.0f} ms; "
            "try again later" + (", or allow less compute with degrade=true" if may_be_lowered else ""),
            retry_after_s=max(0.0, wait_s - left_s),
        )
