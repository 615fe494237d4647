"""How many CPUs this process may really use: affinity mask and cgroup quota, whichever is smaller.

A thread pool as wide as the host, under a quota of two CPUs, is throttled for most of every period; ONNX Runtime sizes
its pool by the host unless told otherwise. This file reads `/proc` and `/sys` below a given root; it knows no pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/"), *, affinity: int | None = None) -> int:
    """CPUs that this process may use, at least 1.

    A fraction is rounded down: a thread that the quota can't feed stalls every other thread of a parallel section.

    Args:
        root: where `proc` and `sys` are found; a test passes a folder.
        affinity: CPUs in the affinity mask; None asks the operating system.
    """
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(int(share) for share in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs granted by every cgroup this process is in, and by each of their ancestors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:  # version 2: one tree
            yield from _walk(mount, path, _quota_v2)
            yield from _walk(mount / "unified", path, _quota_v2)  # hybrid hosts mount it here
        elif "cpu" in controllers.split(","):  # version 1: a tree for each set of controllers
            for folder in {controllers, "cpu", "cpu,cpuacct"}:
                yield from _walk(mount / folder, path, _quota_v1)


def _walk(mount: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Quotas of the cgroup `path` and of its ancestors up to the mount.

    In a container without its own cgroup namespace `path` is the host's and doesn't exist below the mount; the walk
    then finds only the mount itself, which is the container's cgroup.
    """
    here = PurePosixPath("/", path.lstrip("/"))
    for level in (here, *here.parents):
        quota = read(mount / str(level).lstrip("/"))
        if quota is not None:
            yield quota


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
