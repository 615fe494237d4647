"""A bundle's graph in ONNX Runtime, on the CPU or a GPU, run as `execution.py` says. It knows no queue, no HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.artifact import Bundle, Precision
from service.engine import EngineOutput, check_output
from service.errors import BundleError, InferenceFailed
from service.execution import (
    Provider,
    available_providers,
    choose_execution,
    provider_entries,
    session_options,
)

INPUTS = {"images": "tensor(uint8)", "threshold": "tensor(float)"}
OUTPUTS = {"logits": "tensor(float)", "kept": "tensor(bool)"}


class OnnxEngine:
    """One session for all input sizes; safe to call from one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int,
        precision: Precision = "float32",
        provider: Provider = "auto",
        max_batch_size: int = 32,
    ) -> None:
        """Load the bundle's graph; arguments are those of `choose_execution`.

        Raises:
            SettingsError: the provider isn't there, or doesn't run this precision.
            BundleError: the graph isn't there in this precision, doesn't load, or hasn't the contract's inputs.
        """
        self.execution = choose_execution(
            provider, precision, threads=threads, max_batch_size=max_batch_size, available=available_providers()
        )
        self._classes = len(bundle.manifest.labels)
        self._layers = bundle.manifest.layers
        self._patches = {graph.size_px: graph.patches for graph in bundle.manifest.graphs}
        self._run_options = ort.RunOptions()
        self._session = self._load(bundle)

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        """Classify `images` (B, H, W, 3) of one of the bundle's sizes, each row with its own threshold (B,).

        Raises:
            InferenceFailed: the runtime failed, or gave non-finite logits or wrong shapes.
        """
        size_px = images.shape[1]
        if size_px not in self._patches or images.shape[2] != size_px:
            raise InferenceFailed(f"the model takes no images of {images.shape[1]} x {images.shape[2]} px")
        try:
            self._run_options = ort.RunOptions()  # its own for each run, so that `terminate` can't hit a later one
            feed: dict[str, NDArray[Any]] = {"images": images, "threshold": threshold}
            if self.execution.on_gpu:
                logits, kept = run_bound(self._session, feed, "cuda", self._run_options)
            else:
                logits, kept = self._session.run(list(OUTPUTS), feed, self._run_options)
        except Exception as error:  # the runtime's errors have no common base class but this
            raise InferenceFailed(f"ONNX Runtime failed: {str(error).splitlines()[0]}") from error
        output = EngineOutput(logits, kept)
        check_output(output, rows=len(images))
        if logits.shape[1] != self._classes or kept.shape[1:] != (self._layers, self._patches[size_px]):
            raise InferenceFailed(f"the graph gave logits {logits.shape} and kept {kept.shape}, unlike the manifest")
        return output

    def terminate(self) -> None:
        """Ask a running `infer`, from another thread, to fail soon; without effect if none runs."""
        self._run_options.terminate = True

    def _load(self, bundle: Bundle) -> ort.InferenceSession:
        precision, sizes_px = self.execution.precision, bundle.manifest.sizes_px
        name = bundle.manifest.served.get(precision)
        if name is None:
            raise BundleError(
                f"{bundle.path} has no {precision} graph: set SKIPVIT_PRECISION=float32, or export it with "
                f"`python -m export{' --calibrate DATA' * (precision == 'int8')}`"
            )
        file, options = bundle.path / name, session_options(self.execution)
        try:
            session = ort.InferenceSession(file, options, providers=provider_entries(self.execution, sizes_px))
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
