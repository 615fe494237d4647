"""The engine that runs a bundle's TorchScript files in torch; torch is imported when one is made, not before.

Its answers are those of ONNX Runtime within rounding. It knows no queue, no HTTP.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.artifact import Bundle, Precision
from service.engine import EngineOutput, check_output
from service.errors import BundleError, InferenceFailed, SettingsError
from service.torchscript_record import find_torchscript, torchscript_mend

if TYPE_CHECKING:
    import torch


class TorchScriptEngine:
    """A bundle's TorchScript, one module for each input size, on a GPU where there is one; one thread at a time."""

    beside = None  # torch has one number of threads for the whole process

    def __init__(self, bundle: Bundle, *, threads: int, on_gpu: bool | None = None) -> None:
        """Load every file of the bundle's `torchscript.json`.

        Args:
            bundle: a verified bundle.
            threads: threads that compute one batch, at least 1; torch has one such number for the whole process.
            on_gpu: whether to run on a GPU; None does where torch has one.

        Raises:
            SettingsError: a GPU is asked for, and torch has none.
            BundleError: a file is missing, isn't what was recorded, or doesn't load.
        """
        import torch

        self._torch = torch
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False  # else a GPU rounds the patch embedding, a convolution, to 10 bits
        if on_gpu and not torch.cuda.is_available():
            raise SettingsError("SKIPVIT_PROVIDER=cuda: this torch sees no GPU; set SKIPVIT_PROVIDER=auto")
        self._device = torch.device("cpu" if on_gpu is False or not torch.cuda.is_available() else "cuda")
        self._classes = len(bundle.manifest.labels)
        self._layers = bundle.manifest.layers
        self._patches = {graph.size_px: graph.patches for graph in bundle.manifest.graphs}
        self._modules: dict[int, Any] = {}
        held: dict[tuple[Any, ...], list[torch.Tensor]] = {}
        for size_px, file in find_torchscript(bundle).items():
            try:
                self._modules[size_px] = load_module(file, self._device)
            except (RuntimeError, ValueError) as error:
                raise BundleError(
                    f"{file}: torch {torch.__version__} can't load it: {_one_line(error)}: "
                    f"{torchscript_mend(bundle.path)}"
                ) from error
            _share(constants(self._modules[size_px]), held)

    @property
    def precision(self) -> Precision:
        """Of the large matrix products."""
        return "float32"

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        """Classify `images` (B, H, W, 3) of one of the bundle's sizes, each row with its own threshold (B,).

        Raises:
            InferenceFailed: torch failed, or gave non-finite logits or wrong shapes.
        """
        size_px, torch = images.shape[1], self._torch
        module = self._modules.get(size_px)
        if module is None or images.shape[2] != size_px:
            raise InferenceFailed(f"no TorchScript for images of {images.shape[1]} x {images.shape[2]} px")
        try:
            # Optimised execution would profile and compile anew, for a second or more, whenever shapes change, as they
            # do from batch to batch; after that it's no faster.
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                feed = (torch.tensor(array, device=self._device) for array in (images, threshold))
                logits, kept = (output.cpu().numpy() for output in module(*feed))
        except Exception as error:  # the interpreter's errors have no common base class but this
            raise InferenceFailed(f"TorchScript failed: {_one_line(error)}") from error
        output = EngineOutput(logits, kept)
        check_output(output, rows=len(images))
        if logits.shape[1] != self._classes or kept.shape[1:] != (self._layers, self._patches[size_px]):
            raise InferenceFailed(f"the module gave logits {logits.shape} and kept {kept.shape}, unlike the manifest")
        return output

    def terminate(self) -> None:
        """Without effect: a run of torch can't be ended from another thread.

        A run that nobody waits for any more ends by itself, at most one batch later, and its answers are dropped.
        """


def load_module(file: Path, device: torch.device | None = None) -> Any:
    """A TorchScript file on a device, the CPU by default; RuntimeError or ValueError if torch can't load it."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is deprecated")  # by torch, which still has it
        return torch.jit.load(file, map_location=device or "cpu")  # type: ignore[no-untyped-call]


def constants(module: Any) -> list[torch.Tensor]:
    """The tensors of a frozen module: its weights."""
    return list(module.code_with_constants[1].const_mapping.values())


def _share(tensors: list[torch.Tensor], held: dict[tuple[Any, ...], list[torch.Tensor]]) -> None:
    """Let tensors that equal one of `held` use its memory; add the others to it.

    Every file carries all weights, and only the position embedding differs between sizes: without this the bundled
    model's five sizes take 250 MB more. It costs 0.1 s.
    """
    for tensor in tensors:
        alike = held.setdefault((tensor.dtype, *tensor.shape), [])
        same = next((other for other in alike if other.equal(tensor)), None)
        if same is None:
            alike.append(tensor)
        else:
            tensor.set_(same)  # type: ignore[call-overload]


def _one_line(error: Exception) -> str:
    """What went wrong, without TorchScript's traceback, at whose end it stands."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "TorchScript" in lines[0] else lines[0]
