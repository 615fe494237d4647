"""`python -m service` (also `skipvit-serve`): serve a model bundle over HTTP until SIGTERM, then drain and exit 0.

    python -m service --port 8000 --model cifar100-vits14
    SKIPVIT_MAX_BATCH_SIZE=16 python -m service
    python -m service --print-config

Every setting is an option and an environment variable, `SKIPVIT_*`; `--help` says what each trades off,
`--print-config` shows what is set. Ready within seconds. A wrong setting or a broken bundle ends it with one line on
stderr and exit code 2.
"""

from __future__ import annotations

import logging.config
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pydantic import ValidationError

from service import heap
from service.api_keys import load_api_keys
from service.errors import ServiceError, SettingsError
from service.lifecycle import EXIT_OK, EXIT_USAGE
from service.options import ONE_PROCESS, check_names, make_parser, read_options
from service.ports import check_ports
from service.served_model import open_model
from service.settings import Settings, explain_settings_error

# The engine's thread needs the interpreter when a run begins and when it ends, and the loop may be busy with a batch's
# answers: at Python's own 5 ms the engine would stand still for as long, twice a run. The thread that loads it needs it
# for each part of a file that it verifies.
_SWITCH_S = 2e-4


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    given = vars(make_parser().parse_args(argv))
    print_config, workers = given.pop("print_config"), given.pop("workers") or os.environ.get("WEB_CONCURRENCY")
    try:
        check_names(os.environ)
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
    try:
        return _serve(settings)
    except ServiceError as error:
        return _refuse(str(error))


def _serve(settings: Settings) -> int:
    sys.setswitchinterval(_SWITCH_S)
    with heap.settling():
        load_api_keys(settings)  # wrong ones are told of before the model takes its seconds
        check_ports(settings)
        with _ending_on_sigterm(), ThreadPoolExecutor(1, "load") as aside:
            opening = aside.submit(open_model, settings, settings.default_model)
            # Here and not above: they bring the web framework, whose import takes the interpreter as long as loading
            # takes the runtime on a second CPU, which waits for no interpreter.
            from service.app import create_app
            from service.logs import logging_config
            from service.rpc import check_extra
            from service.server import serve

            logging.config.dictConfig(logging_config(settings.log_format))
            check_extra(settings)
            bundle, engine = opening.result()
        app = create_app(settings, bundle=bundle, engine=engine)
    return serve(app, settings)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Exit on SIGTERM while the model loads and no server listens yet; process 1 of a container would ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_OK))  # waits for no thread that loads
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _refuse(message: str) -> int:
    print(f"skipvit: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
