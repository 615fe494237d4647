from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from service import heap

SCRIPT = """
import gc, weakref
from service import heap

class Ring:
    def __init__(self):
        self.itself = self

with heap.settling():
    assert not gc.isenabled()
looks = gc.get_stats()[0]["collections"]
gone = weakref.ref(Ring())
kept = [[] for _ in range(10_000)]
print(gc.get_stats()[0]["collections"] - looks, gone() is not None)
kept += [[] for _ in range(20_000)]
print(gc.get_stats()[0]["collections"] - looks, gone() is not None)
"""


def test_after_it_cycles_are_looked_for_seldom_and_still_found() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["0 True", "1 False"]


def test_who_fails_to_load_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ValueError, match="broken"), heap.settling():
        raise ValueError("broken")
    assert gc.isenabled()
    assert gc.get_threshold()[0] < 20_000
