"""The engine: images and thresholds in, logits and kept patches out. Synchronous numpy; knows no queue, no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.artifact import Bundle, Graph
from service.errors import BundleError, InferenceFailed


class EngineOutput(NamedTuple):
    """What one batch gave."""

    logits: NDArray[np.float32]  # (B, classes)
    kept: NDArray[np.bool_]  # (B, L, P): was the patch computed in the layer?


class Engine(Protocol):
    """Anything that classifies a batch of images of one size."""

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        """Classify `images` (B, H, W, 3) RGB, each row with its own score threshold (B,) in [0, 1]."""
        ...

    def terminate(self) -> None:
        """Ask a running `infer`, from another thread, to fail soon; without effect if none runs."""
        ...


Precision = Literal["float32", "int8"]
INPUTS = {"images": "tensor(uint8)", "threshold": "tensor(float)"}
OUTPUTS = {"logits": "tensor(float)", "kept": "tensor(bool)"}


class OnnxEngine:
    """A bundle's graphs in ONNX Runtime, one session for each input size; safe to call from one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int,
        precision: Precision = "float32",
        providers: Sequence[str] | None = None,
    ) -> None:
        """Load every graph of the bundle.

        Args:
            bundle: a verified bundle.
            threads: threads that compute one batch, at least 1.
            precision: of the large matrix products; int8 is for CPUs.
            providers: ONNX Runtime execution providers; None takes CUDA where this runtime has it (and the precision
                is float32), then the CPU.

        Raises:
            BundleError: a graph doesn't load, isn't there in this precision, or doesn't have the contract's inputs and
                outputs.
        """
        self.precision = precision
        self.providers = tuple(_available_providers(precision) if providers is None else providers)
        self._classes = len(bundle.manifest.labels)
        self._layers = bundle.manifest.layers
        self._graphs = {graph.size_px: graph for graph in bundle.manifest.graphs}
        self._run_options = ort.RunOptions()
        _share_arena()
        self._sessions = {graph.size_px: self._session(bundle, graph, threads) for graph in bundle.manifest.graphs}

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        """Classify `images` (B, H, W, 3) of one of the bundle's sizes, each row with its own threshold (B,).

        Raises:
            InferenceFailed: the runtime failed, or gave non-finite logits or wrong shapes.
        """
        size_px = images.shape[1]
        session = self._sessions.get(size_px)
        if session is None or images.shape[2] != size_px:
            raise InferenceFailed(f"no graph for images of {images.shape[1]} x {images.shape[2]} px")
        try:
            self._run_options = ort.RunOptions()  # its own for each run, so that `terminate` can't hit a later one
            feed = {"images": images, "threshold": threshold}
            logits, kept = session.run(["logits", "kept"], feed, self._run_options)
        except Exception as error:  # the runtime's errors have no common base class but this
            raise InferenceFailed(f"ONNX Runtime failed: {str(error).splitlines()[0]}") from error
        output = EngineOutput(logits, kept)
        check_output(output, rows=len(images))
        if logits.shape[1] != self._classes or kept.shape[1:] != (self._layers, self._graphs[size_px].patches):
            raise InferenceFailed(f"the graph gave logits {logits.shape} and kept {kept.shape}, unlike the manifest")
        return output

    def terminate(self) -> None:
        """Ask a running `infer`, from another thread, to fail soon; without effect if none runs."""
        self._run_options.terminate = True

    def _session(self, bundle: Bundle, graph: Graph, threads: int) -> ort.InferenceSession:
        name = graph.int8_file if self.precision == "int8" else graph.file
        if name is None:
            raise BundleError(
                f"{bundle.path} has no int8 graph for {graph.size_px} px: set SKIPVIT_PRECISION=float32, or export it "
                "with `python -m export --calibrate DATA`"
            )
        file = bundle.path / name
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # the graph is a chain: there is nothing to run beside
        options.log_severity_level = 3
        # Batch size and kept patches change from run to run, so a plan for one shape's memory rarely fits the next.
        # The arena stays on, one for all sizes: it keeps the largest run's memory, and `warm_up` makes that run first,
        # so that the process reaches its size before it is ready and not under its first load.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.use_env_allocators", "1")
        # `session.intra_op.allow_spinning` stays at its default, on: between the operators of a run threads would
        # otherwise sleep and wake hundreds of times a batch. They stop when it ends: another size's session, with
        # threads of its own, may run next, and would share the CPUs with them for a while.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(file, sess_options=options, providers=list(self.providers))
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


def check_output(output: EngineOutput, *, rows: int) -> None:
    """Raise InferenceFailed unless there is one finite row of logits and one row of kept patches for each image."""
    logits, kept = output
    if logits.ndim != 2 or kept.ndim != 3 or len(logits) != rows or len(kept) != rows:
        raise InferenceFailed(f"{rows} images gave logits {logits.shape} and kept {kept.shape}")
    if not np.isfinite(logits).all():
        raise InferenceFailed("the model gave logits that are not finite")


def warm_up(engine: Engine, sizes_px: Sequence[int], *, max_batch_size: int) -> None:
    """Run the largest batch of the largest size, which takes the most memory, then one image of every size.

    The first runs pay for allocation and kernel choice; here nobody waits for them.
    """
    for size_px, batch_size in ((max(sizes_px), max_batch_size), *((size_px, 1) for size_px in sizes_px)):
        images = np.zeros((batch_size, size_px, size_px, 3), np.uint8)
        for threshold in (0.0, 0.5):
            output = engine.infer(images, np.full(batch_size, threshold, np.float32))
            check_output(output, rows=batch_size)


@cache
def _share_arena() -> None:
    """Make the one CPU arena that all sessions of this process take their memory from."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_asked = 1  # instead of doubling
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, grow_as_asked, -1, -1))


def _available_providers(precision: Precision) -> list[str]:
    available: list[Any] = ort.get_available_providers()
    wanted = ["CUDAExecutionProvider"] * (precision == "float32") + ["CPUExecutionProvider"]
    return [name for name in wanted if name in available]
