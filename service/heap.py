"""The C library's heap: what it keeps of freed memory goes back to the system. It knows no model."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any


def trim() -> None:
    """Give freed memory back; without effect where the C library isn't glibc, whose next allocations reuse it.

    Loading a graph leaves hundreds of megabytes of freed weights in their first form, scattered among what stays.
    """
    if (give_back := _malloc_trim()) is not None:
        give_back(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
