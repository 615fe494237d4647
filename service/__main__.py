"""`python -m service` (also `skipvit-serve`): serve a model bundle over HTTP until SIGTERM, then drain and exit 0.

    python -m service --port 8000 --model cifar100-vits14
    SKIPVIT_MAX_BATCH_SIZE=16 python -m service
    python -m service --print-config

Every setting is an option and an environment variable, `SKIPVIT_*`; `--help` says what each trades off,
`--print-config` shows what is set. Ready within seconds. A wrong setting or a broken bundle ends it with one line on
stderr and exit code 2.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service import heap
from service.api_keys import load_api_keys
from service.app import create_app
from service.connection import Connection, ConnectionLimits
from service.errors import ServiceError, SettingsError
from service.lifecycle import Lifecycle
from service.logs import logging_config
from service.options import ONE_PROCESS, make_parser, read_options
from service.rpc import check_extra
from service.served_model import open_model
from service.settings import Settings, explain_settings_error

EXIT_OK, EXIT_UNFINISHED, EXIT_USAGE = 0, 1, 2
# The engine's thread needs the interpreter when a run begins and when it ends, and the loop may be busy with a batch's
# answers: at Python's own 5 ms the engine would stand still for as long, twice a run.
_SWITCH_S = 2e-4
_LAST_ANSWERS_S = 1  # for the answers to requests that were given up


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


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    given = vars(make_parser().parse_args(argv))
    print_config, workers = given.pop("print_config"), given.pop("workers") or os.environ.get("WEB_CONCURRENCY")
    try:
        settings = read_options(given)
    except ValidationError as error:
        return _refuse(explain_settings_error(error))
    except SettingsError as error:
        return _refuse(str(error))
    if print_config:
        print(settings.model_dump_json(indent=2))
        return EXIT_OK
    if workers not in (None, "", "1"):
        return _refuse(ONE_PROCESS)
    logging.config.dictConfig(logging_config(settings.log_format))
    try:
        check_extra(settings)
        with heap.settling():
            with _ending_on_sigterm():
                load_api_keys(settings)  # wrong ones are told of before the model takes its seconds
                bundle, engine = open_model(settings, settings.default_model)
            app = create_app(settings, bundle=bundle, engine=engine)
    except ServiceError as error:
        return _refuse(str(error))
    sys.setswitchinterval(_SWITCH_S)
    return serve(app, settings)


def make_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        workers=1,
        http=Connection.limited(ConnectionLimits(settings.max_connections, settings.client_timeout_s)),
        ws="none",
        h11_max_incomplete_event_size=settings.max_header_bytes,
        log_config=None,  # `main` has set up the log
        access_log=False,  # `skipvit.access` has the request's id
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        lifespan="on",
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + _LAST_ANSWERS_S,
    )


def serve(app: FastAPI, settings: Settings) -> int:
    """Serve the application until a signal ends it; returns the exit code."""
    lifecycle: Lifecycle = app.state.lifecycle
    server = DrainingServer(
        make_config(app, settings),
        lifecycle=lifecycle,
        delay_s=settings.drain_delay_s,
        timeout_s=settings.drain_timeout_s,
    )
    server.run()
    if not server.started:
        return EXIT_USAGE  # the lifespan failed, and said why: a second port is taken
    if not lifecycle.finished_in_time:
        # The engine's thread hangs in native code; waiting for it, as the interpreter would, may take for ever.
        logging.getLogger("skipvit").error("gave up on images that were still being computed")
        logging.shutdown()
        os._exit(EXIT_UNFINISHED)
    return EXIT_OK


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Exit on SIGTERM while the model loads and no server listens yet; process 1 of a container would ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_OK))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _refuse(message: str) -> int:
    print(f"skipvit: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
