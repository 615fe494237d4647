"""Memory: what the C library keeps of freed memory goes back, and what stays isn't searched. It knows no model."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_ALLOCATIONS = 20_000  # net, of containers, between two looks at the youngest ones: some megabytes


def trim() -> None:
    """Give freed memory back; without effect where the C library isn't glibc, whose next allocations reuse it.

    Loading a graph leaves hundreds of megabytes of freed weights in their first form, scattered among what stays.
    """
    if (give_back := _malloc_trim()) is not None:
        give_back(0)


@contextmanager
def settling() -> Iterator[None]:
    """While the block makes what stays, look for no garbage; after it look at what is newer alone, and seldom.

    For a process that only serves: requests leave next to no cycles, but at Python's own pace each is interrupted to
    look for some, now and then among all objects of the process.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
