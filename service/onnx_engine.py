"""A bundle's graph in ONNX Runtime, on the CPU or a GPU, run as `execution.py` says. It knows no queue, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service import graph_cache, heap
from service.artifact import Bundle, Precision
from service.engine import EngineOutput, check_output
from service.errors import BundleError, InferenceFailed
from service.execution import (
    CPU,
    TENSORRT,
    PrecisionChoice,
    Provider,
    available_providers,
    choose_execution,
    provider_entries,
    session_options,
)

INPUTS = {"images": "tensor(uint8)", "threshold": "tensor(float)"}
OUTPUTS = {"logits": "tensor(float)", "kept": "tensor(bool)"}
WEIGHTS = "weights.safetensors"  # in the bundle; every graph's initializers point into it


class OnnxEngine:
    """Two sessions, each for all input sizes; safe to call from one thread at a time, `beside` from another.

    Rows at threshold 0 go through the graph without gates, as fast as the dense model; all others are packed. Which of
    them a row goes through depends on its own threshold alone, so its answer doesn't depend on its neighbours.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int,
        precision: PrecisionChoice = "float32",
        provider: Provider = "auto",
        max_batch_size: int = 32,
        runs: int = 1,
        cache: Path | None = None,
    ) -> None:
        """Load the bundle's graphs; arguments are those of `choose_execution`, and the folder of `graph_cache`.

        Raises:
            SettingsError: the provider isn't there, or doesn't run this precision.
            BundleError: the graph isn't there in this precision, doesn't load, or hasn't the contract's inputs.
        """
        self.execution = choose_execution(
            provider,
            precision,
            threads=threads,
            max_batch_size=max_batch_size,
            runs=runs,
            available=available_providers(),
            offered=bundle.manifest.served.keys(),
        )
        self._classes = len(bundle.manifest.labels)
        self._layers = bundle.manifest.layers
        self._patches = {graph.size_px: graph.patches for graph in bundle.manifest.graphs}
        self._run_options = ort.RunOptions()
        self._cache = cache
        self._gated = self._load(bundle, bundle.manifest.served)
        self._dense = self._load(bundle, bundle.manifest.dense)
        self._in_pool = False
        self.beside: OnnxEngine | None = None
        if self.execution.runs > 1:
            self.beside = copy(self)
            self.beside._in_pool = True
        heap.trim()  # once: the second one was loaded into what the first had freed

    @property
    def precision(self) -> Precision:
        """Of the large matrix products."""
        return self.execution.precision

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        """Classify `images` (B, H, W, 3) of one of the bundle's sizes, each row with its own threshold (B,).

        Raises:
            InferenceFailed: the runtime failed, or gave non-finite logits or wrong shapes.
        """
        size_px = images.shape[1]
        if size_px not in self._patches or images.shape[2] != size_px:
            raise InferenceFailed(f"the model takes no images of {images.shape[1]} x {images.shape[2]} px")
        self._run_options = ort.RunOptions()  # its own for each call, so that `terminate` can't hit a later one
        gated = threshold > 0
        if gated.all() or not gated.any():
            return self._run(self._gated if gated.all() else self._dense, images, threshold)
        logits = np.empty((len(images), self._classes), np.float32)
        kept = np.empty((len(images), self._layers, self._patches[size_px]), np.bool_)
        for session, rows in ((self._gated, gated), (self._dense, ~gated)):
            logits[rows], kept[rows] = self._run(session, images[rows], threshold[rows])
        return EngineOutput(logits, kept)

    def terminate(self) -> None:
        """Ask a running `infer`, from another thread, to fail soon; without effect if none runs."""
        self._run_options.terminate = True

    def _run(
        self, session: ort.InferenceSession, images: NDArray[np.uint8], threshold: NDArray[np.float32]
    ) -> EngineOutput:
        feed: dict[str, NDArray[Any]] = {"images": images, "threshold": threshold}
        try:
            if self.execution.on_gpu:
                found = run_bound(session, bucketed(feed, self.execution.max_batch_size), "cuda", self._run_options)
                output = EngineOutput(*(values[: len(images)] for values in found))
            elif self._in_pool:
                output = EngineOutput(*run_in_pool(session, feed, self._run_options))
            else:
                output = EngineOutput(*session.run(list(OUTPUTS), feed, self._run_options))
        except Exception as error:  # the runtime's errors have no common base class but this
            raise InferenceFailed(f"ONNX Runtime failed: {str(error).splitlines()[0]}") from error
        check_output(output, rows=len(images))
        logits, kept = output
        if logits.shape[1] != self._classes or kept.shape[1:] != (self._layers, self._patches[images.shape[1]]):
            raise InferenceFailed(f"the graph gave logits {logits.shape} and kept {kept.shape}, unlike the manifest")
        return output

    def _load(self, bundle: Bundle, graphs: Mapping[Precision, str]) -> ort.InferenceSession:
        precision = self.execution.precision
        name = graphs.get(precision)
        if name is None:
            raise BundleError(
                f"{bundle.path} has no {precision} graph: set SKIPVIT_PRECISION=float32, or export it with "
                f"`python -m export{' --calibrate DATA' * (precision == 'int8')}`"
            )
        file = bundle.path / name
        try:
            session = self._session(bundle, file)
        except Exception as error:
            raise BundleError(f"{file}: ONNX Runtime can't load it: {str(error).splitlines()[0]}") from error
        for kind, wanted, found in (
            ("inputs", INPUTS, session.get_inputs()),
            ("outputs", OUTPUTS, session.get_outputs()),
        ):
            actual = {node.name: node.type for node in found}
            if actual != wanted:
                raise BundleError(f"{file}: its {kind} are {actual}, not {wanted}: export it anew with `make export`")
        return session

    def _session(self, bundle: Bundle, file: Path) -> ort.InferenceSession:
        """In float32 there is little to gain from a cache, which would hold all weights twice as wide as the bundle."""
        options = partial(session_options, self.execution)
        keeps = self.execution.precision == "int8" or TENSORRT in self.execution.providers
        cache = graph_cache.usable(self._cache) if keeps else None
        if cache and self.execution.precision == "int8":
            made_of = " ".join(bundle.manifest.files[name].sha256 for name in (file.name, WEIGHTS))
            return graph_cache.load(file, made_of, cache / bundle.manifest.name, options, CPU)
        providers = provider_entries(self.execution, bundle.manifest.sizes_px, cache)
        return ort.InferenceSession(file, options(), providers=providers)


def bucketed(feed: dict[str, NDArray[Any]], most: int) -> dict[str, NDArray[Any]]:
    """A batch filled up to a power of two, at most `most` rows: a GPU meets few shapes, and small ones don't fill it.

    The rows that are added, black images at threshold 1, compute no patch where there are gates.
    """
    images, threshold = feed["images"], feed["threshold"]
    rows = len(images)
    added = max(rows, min(1 << (rows - 1).bit_length(), most)) - rows
    black = np.zeros((added, *images.shape[1:]), images.dtype)
    return {
        "images": np.concatenate([images, black]),
        "threshold": np.concatenate([threshold, np.ones(added, threshold.dtype)]),
    }


def run_bound(
    session: ort.InferenceSession, feed: dict[str, NDArray[Any]], device: str, options: ort.RunOptions
) -> list[NDArray[Any]]:
    """`session.run` with inputs and outputs in a device's memory: one copy there, one back, none between operators."""
    binding = session.io_binding()
    for name, values in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), device, 0))
    for name in OUTPUTS:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding, options)
    outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
    return outputs


def run_in_pool(
    session: ort.InferenceSession, feed: dict[str, NDArray[Any]], options: ort.RunOptions
) -> list[NDArray[Any]]:
    """`session.run` on one of the session's own threads, so that a run beside another brings no thread too many."""
    answered: SimpleQueue[tuple[list[NDArray[Any]], str]] = SimpleQueue()
    session.run_async(list(OUTPUTS), feed, lambda results, _, error: answered.put((results, error)), None, options)
    results, error = answered.get()
    if error:
        raise RuntimeError(error)
    return results
