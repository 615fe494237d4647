"""One process of callers on a pool of connections: requests leave when they are due, answers are kept as they came.

aiohttp, because the generator shares the machine with what it measures: 0.17 ms of CPU a request, httpx takes 3 ms.
A thread of its own keeps the time, because asyncio's timers are rounded up to whole milliseconds. Answers are read but
not parsed during the run. Where the system allows it (root, CAP_SYS_NICE) the generator runs in real time, as if it had
a machine of its own; otherwise it is late on a busy machine, and says so. It knows no service and no schedule.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import NamedTuple

import aiohttp
from yarl import URL

from loadtest.arrivals import Seconds

GIVE_UP_AFTER = 50  # requests in a row without any answer: nobody is there
_HEAD_START_S = 0.05  # so that the first request is due after the pacing thread runs
_SWITCH_S = 0.0005  # how long the pacing thread may wait for Python's lock
_EARLY_S = 0.0003  # what waking a sleeping thread and then the loop takes; what is left of it is waited out, busily


class Prepared(NamedTuple):
    """A request, encoded before the run."""

    url: URL
    body: bytes
    headers: dict[str, str]
    hang_up_s: float | None = None  # the caller leaves after that long


class Shot(NamedTuple):
    """What became of one request; times in seconds from the run's start."""

    number: int  # in the list of prepared requests
    due_s: float
    sent_s: float
    done_s: float
    status: int  # 0: no answer
    body: bytes
    error: str  # why there is no answer: "connection: ...", "garbage: ...", "timeout", "cancelled"


class Driver:
    """Sends prepared requests, open loop or closed, and collects shots. One run each."""

    def __init__(
        self, requests: Sequence[Prepared], *, timeout_s: float, on_done: Callable[[], None] = lambda: None
    ) -> None:
        self._requests = requests
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._on_done = on_done
        self._shots: list[Shot] = []
        self._silent = 0  # requests in a row that got no answer
        self._stop = threading.Event()
        self._start_s = 0.0

    @property
    def gave_up(self) -> bool:
        """Whether the run was cut short because nobody answered."""
        return self._silent >= GIVE_UP_AFTER

    @property
    def interrupted(self) -> bool:
        """Whether the run was cut short by `stop`."""
        return self._stop.is_set() and not self.gave_up

    def stop(self) -> None:
        """Send nothing more; what is on its way is waited for. Safe in a signal handler."""
        self._stop.set()

    async def open_loop(self, due_s: Seconds) -> list[Shot]:
        """Send request i at `due_s[i]`, whatever has become of those before."""
        async with self._session() as session:
            tasks: set[asyncio.Task[None]] = set()

            def launch(index: int) -> None:
                due = self._start_s + float(due_s[index])
                while perf_counter() < due:
                    pass
                task = asyncio.create_task(self._send(session, index, float(due_s[index])))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            with _undisturbed():
                self._start_s = perf_counter() + _HEAD_START_S
                await asyncio.to_thread(self._pace, due_s, asyncio.get_running_loop(), launch)
                while tasks:
                    await asyncio.wait(tasks)
        return self._shots

    async def closed_loop(self, concurrency: int, duration_s: float, limit: int | None = None) -> list[Shot]:
        """`concurrency` callers, each sending the next request when it has its answer, until the time is over."""
        numbers = itertools.count()

        async def caller(session: aiohttp.ClientSession) -> None:
            while (now_s := perf_counter() - self._start_s) < duration_s and not self._stop.is_set():
                number = next(numbers)
                if limit is not None and number >= limit:
                    return
                await self._send(session, number % len(self._requests), now_s)

        async with self._session() as session:
            with _undisturbed():
                self._start_s = perf_counter()
                await asyncio.gather(*(caller(session) for _ in range(concurrency)))
        return self._shots

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=self._timeout)

    def _pace(self, due_s: Seconds, loop: asyncio.AbstractEventLoop, launch: Callable[[int], None]) -> None:
        for index, due in enumerate(due_s.tolist()):
            wait_s = self._start_s + due - perf_counter() - _EARLY_S
            if self._stop.wait(wait_s) if wait_s > 0 else self._stop.is_set():
                return
            loop.call_soon_threadsafe(launch, index)

    async def _send(self, session: aiohttp.ClientSession, index: int, due_s: float) -> None:
        request = self._requests[index]
        sent_s = perf_counter() - self._start_s
        status, body, error = 0, b"", ""
        try:
            async with (
                asyncio.timeout(request.hang_up_s) as patience,
                session.post(request.url, data=request.body, headers=request.headers) as response,
            ):
                body = await response.read()
                status = response.status
        except TimeoutError:
            error = "cancelled" if patience.expired() else "timeout"
        except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError) as failure:
            error = f"garbage: {type(failure).__name__}"
        except (aiohttp.ClientError, OSError) as failure:
            error = f"connection: {type(failure).__name__}"
        done_s = perf_counter() - self._start_s
        self._shots.append(Shot(index, due_s, sent_s, done_s, status, body, error))
        self._silent = self._silent + 1 if error and error != "cancelled" else 0
        if self.gave_up:
            self._stop.set()
        self._on_done()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """While requests are timed: no garbage collection, quick thread switches, and first in line for a CPU."""
    interval_s, collecting = sys.getswitchinterval(), gc.isenabled()
    gc.collect()
    gc.disable()
    sys.setswitchinterval(_SWITCH_S)
    _schedule("SCHED_RR", 1)
    try:
        yield
    finally:
        _schedule("SCHED_OTHER", 0)
        sys.setswitchinterval(interval_s)
        if collecting:
            gc.enable()


def _schedule(policy: str, priority: int) -> None:
    """Let the system schedule this thread, and those it starts, by this policy; where it may be asked to."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, getattr(os, policy), os.sched_param(priority))
