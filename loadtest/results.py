"""Result files and the exit code that a run earns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from loadtest.run import Outcome

EXIT_OK, EXIT_FAILED = 0, 1


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write whole or not at all: a run that is stopped here leaves no half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.part")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.replace(file)


def read_json(file: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: not there, or no JSON object.
    """
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read as a result: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file} can't be read as a result: it holds no object")
    return document


def verdict(module: str, outcome: Outcome) -> int:
    """The exit code of a run, and a line about what went wrong, if anything did."""
    if outcome.cut:
        print(f"{module}: ended early: {outcome.cut}; what was measured until then is kept", file=sys.stderr)
    elif not outcome.summary["healthy"]:
        wrong = ", ".join(f"{count} x {what}" for what, count in outcome.summary["errors"].items())
        print(f"{module}: the server misbehaved: {wrong}", file=sys.stderr)
    return EXIT_FAILED if outcome.cut or not outcome.summary["healthy"] else EXIT_OK
