"""What command lines read, each for argparse's `type`: a value, or one line that says what would be one."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import torch


def count(text: str) -> int:
    """A whole number from 0; commands take 0 for all."""
    number = int(text)  # argparse words a ValueError
    if number < 0:
        raise ArgumentTypeError(f"{text} is below 0")
    return number


def positive(text: str) -> int:
    """A whole number from 1."""
    if count(text) == 0:
        raise ArgumentTypeError("0 is too few: give 1 or more")
    return int(text)


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers from 0, comma-separated."""
    return tuple(count(part) for part in text.split(",") if part.strip())


def levels(text: str) -> tuple[float, ...]:
    """Thresholds in [0, 1], comma-separated, one at least."""
    found = tuple(float(part) for part in text.split(",") if part.strip())
    if not found or not all(0 <= level <= 1 for level in found):
        raise ArgumentTypeError(f"{text!r} isn't one threshold or more, in [0, 1]")
    return found


def device(text: str) -> str:
    """A device of torch's that computes here; `auto` is the GPU where there is one."""
    name = text if text != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's: no driver, no CUDA built in, `meta`
        reason = str(error).strip().splitlines()[0]
        raise ArgumentTypeError(f"nothing is computed on {name!r} here ({reason}): give auto, cpu or cuda") from None
    return name


def new_file(text: str) -> Path:
    """A file to write when the work is done; its folder is made now, so that nothing is lost then."""
    file = Path(text)
    if file.is_dir():
        raise ArgumentTypeError(f"{text} is a folder: name a file in it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentTypeError(f"its folder can't be made ({error})") from None
    return file
