"""How HTTP is served until a signal ends it: uvicorn, which drains. It knows no model and no route."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.connection import Connection
from service.lifecycle import EXIT_OK, EXIT_UNFINISHED, EXIT_USAGE, Lifecycle
from service.settings import Settings

_LAST_ANSWERS_S = 1  # for the answers to requests that were given up
_OTHER_FILES = 100  # open beside connections

logger = logging.getLogger("skipvit")


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT: not ready at once, accept for a while, then finish. On the second: exit now."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        lifecycle: Lifecycle,
        delay_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._stop_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler. Uvicorn's own would note the signal and raise it again after a clean end: no exit code 0."""
        if self._stop_at_s is not None:
            os._exit(128 + sig)
        self._stop_at_s = self._clock() + self._delay_s
        self._lifecycle.begin_drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by the main loop; true ends it."""
        if self._stop_at_s is not None and self._clock() >= self._stop_at_s:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting and let requests finish; after the timeout they are answered 503, before uvicorn cuts them."""
        self._lifecycle.stop_accepting()
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._lifecycle.abandon)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def make_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        workers=1,
        http=Connection.limited(settings),
        ws="none",
        log_config=None,  # who calls has set up the log
        access_log=False,  # `skipvit.access` has the request's id
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        lifespan="on",
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + _LAST_ANSWERS_S,
    )


def within_open_files(settings: Settings) -> Settings:
    """Raise the process's limit of open files to what connections want; the settings, with fewer if it can't be.

    Each connection is a file, there may be twice the limit for a moment, and containers often begin at 1,024 files.
    """
    wanted, (soft, hard) = 2 * settings.max_connections + _OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return settings
    fewer = max(1, (allowed - _OTHER_FILES) // 2)
    logger.warning("with %d open files SKIPVIT_MAX_CONNECTIONS is %d: raise `ulimit -n`", allowed, fewer)
    return settings.model_copy(update={"max_connections": fewer})


def serve(app: FastAPI, settings: Settings) -> int:
    """Serve the application until a signal ends it, and end the process; returns an exit code if nothing was served."""
    lifecycle: Lifecycle = app.state.lifecycle
    server = DrainingServer(
        make_config(app, within_open_files(settings)),
        lifecycle=lifecycle,
        delay_s=settings.drain_delay_s,
        timeout_s=settings.drain_timeout_s,
    )
    with suppress(SystemExit):  # uvicorn's, with a code of its own, if it can't start, after it said why
        server.run()
    if not server.started:
        return EXIT_USAGE
    if not lifecycle.finished_in_time:
        logger.error("gave up on images that were still being computed")
    logging.shutdown()
    sys.stdout.flush()
    # Threads may still decode or compute what nobody waits for; the interpreter would wait for them, however long.
    os._exit(EXIT_OK if lifecycle.finished_in_time else EXIT_UNFINISHED)
