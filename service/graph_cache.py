"""Graphs as ONNX Runtime has optimised them for this CPU, kept from one start to the next; it knows no bundle.

To load an int8 graph is to make its weights int8 first, which takes several times as long, and as much memory, as all
the rest (`python -m export.execution`). A file is named after the graph, what it was made of and by, and its own
digest, so that one that is stale or damaged isn't taken. Where nothing can be kept, graphs load as ever.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

logger = logging.getLogger("skipvit.graph_cache")

_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = re.compile(r"^(?:flags|Features)\s*:.*$", re.MULTILINE)
_DIGITS = 16


def usable(folder: Path | None) -> Path | None:
    """The folder, `~` replaced, made if it isn't there; None where it can't be, or may not be read and written."""
    try:
        found = folder and folder.expanduser()
        if found:
            found.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # the latter where there is no home
        return None
    return found if found and os.access(found, os.R_OK | os.W_OK | os.X_OK) else None


def load(
    file: Path, made_of: str, folder: Path, options: Callable[[], ort.SessionOptions], provider: str
) -> ort.InferenceSession:
    """A session of the graph `file`, from what `folder` has of it, or else keeping it there.

    Args:
        file: the graph.
        made_of: digests of the graph and of its weights.
        folder: in one that is usable; nobody else may write there, for what it has is run. Made if it isn't there.
        options: makes the session's options, which are used up.
        provider: the execution provider.

    Raises what ONNX Runtime does for a graph that it can't load.
    """
    start = f"{file.stem}-{_digest(f'{made_of} {ort.__version__} {_cpu()}'.encode())}"
    for kept in folder.glob(f"{start}-*.onnx"):
        try:
            if kept.stem.rpartition("-")[2] == _digest(kept.read_bytes()):
                ready = options()
                ready.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                return ort.InferenceSession(kept, ready, providers=[provider])
        except Exception as error:  # the runtime's errors have no common base class but this
            logger.warning("%s can't be loaded, it is made anew: %s", kept, error)
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            return _keep(file, Path(scratch) / file.name, folder / start, options(), provider)
    except Exception as error:  # no room; if it is the graph's own fault, that is told below
        logger.info("%s isn't kept in %s for the next start: %s", file.name, folder, type(error).__name__)
        return ort.InferenceSession(file, options(), providers=[provider])


def _keep(file: Path, scratch: Path, start: Path, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    """Load the graph and put what the runtime made of it where `load` looks, in place of older ones."""
    options.optimized_model_filepath = str(scratch)
    session = ort.InferenceSession(file, options, providers=[provider])
    made = start.with_name(f"{start.name}-{_digest(scratch.read_bytes())}.onnx")
    older = [kept for kept in start.parent.glob(f"{file.stem}-*-*.onnx") if kept != made]
    scratch.replace(made)
    for kept in older:
        kept.unlink(missing_ok=True)
    return session


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _cpu() -> str:
    """What the optimisations may depend on: the kind of processor and its instructions."""
    found = _FEATURES.search(_CPUINFO.read_text()) if _CPUINFO.exists() else None
    return f"{platform.machine()} {found[0] if found else platform.processor()}"
