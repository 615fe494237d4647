"""How graphs run in ONNX Runtime: execution provider, threads, memory. Every choice is made here, with its reason.

Figures are of the bundled model on 2 cores (`python -m export.execution`). It knows no bundle and no session.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime as ort

from service.artifact import Precision
from service.errors import SettingsError

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
PrecisionChoice = Literal["auto", "float32", "float16", "int8"]
ProviderEntry = tuple[str, dict[str, str]]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_SPIN_US = 300  # most operators are shorter; older runtimes know no such limit, and spin on
_BEST: dict[Provider, Precision] = {"cpu": "int8", "tensorrt": "float16"}
_NEEDED = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}


class Execution(NamedTuple):
    """How every graph of a bundle runs."""

    providers: tuple[str, ...]  # in order of preference; the CPU last
    precision: Precision
    threads: int  # that compute one batch, on the CPU
    max_batch_size: int
    runs: int = 1  # of one session at once

    @property
    def on_gpu(self) -> bool:
        """Whether tensors live in a GPU's memory."""
        return self.providers[0] != CPU


def choose_execution(
    provider: Provider,
    precision: PrecisionChoice,
    *,
    threads: int,
    max_batch_size: int,
    runs: int = 1,
    available: Sequence[str],
    offered: Collection[Precision],
) -> Execution:
    """Settle what was left open, and refuse what can't be.

    One instance with all threads, rather than one for each core: that would hold the weights once a core and take 1.5
    times as long for a single image. But the threads of a run wait for each other at every operator, so what the event
    loop takes of one CPU is lost on all. Two runs at once wait less: the second one has one of the session's own
    threads, and each what the other leaves it; a run that has none beside it takes all threads.

    Args:
        provider: `auto` takes CUDA where it is available, but the CPU for int8; the CPU otherwise. Never TensorRT,
            which builds its engines for minutes.
        precision: of the large matrix products. `auto` takes int8 on the CPU: half as many images again in batches,
            with VNNI twice as many, as accurate on the test images; float32 on a GPU, and where there is no int8.
            TensorRT takes float16: the float32 graph has operators of ONNX Runtime's own, which would cut its engine
            into pieces.
        threads: at least 1.
        max_batch_size: rows of the largest batch.
        runs: at once, where there are as many threads; a GPU gets one after the other.
        available: execution providers that can run here.
        offered: precisions that the bundle has graphs in.

    Raises:
        SettingsError: the provider isn't there, or doesn't run this precision; the message has the mend.
    """
    if provider == "auto":
        provider = "cuda" if CUDA in available and precision != "int8" else "cpu"
    if precision == "auto":
        best = _BEST.get(provider, "float32")
        precision = best if best in offered else "float32"
    if precision == "int8" and provider != "cpu":
        raise SettingsError(
            f"SKIPVIT_PRECISION=int8 is for CPUs, SKIPVIT_PROVIDER={provider} isn't one: set float16 or float32"
        )
    if _NEEDED[provider] not in available:
        raise SettingsError(
            f"SKIPVIT_PROVIDER={provider}: ONNX Runtime runs only {', '.join(available)} here; beside a GPU, "
            "install the extra `service-gpu` instead of `service-cpu`; or set SKIPVIT_PROVIDER=auto"
        )
    chain = {"cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}[provider]
    providers = tuple(name for name in chain if name in available)
    return Execution(providers, precision, threads, max_batch_size, min(runs, threads) if provider == "cpu" else 1)


def provider_entries(execution: Execution, sizes_px: Sequence[int], cache: Path | None = None) -> list[ProviderEntry]:
    """The providers with their options, for images of some sizes. CUDA's and TensorRT's never ran on a GPU.

    `cache` is the folder where TensorRT keeps the engines that it builds.
    """
    options: dict[str, dict[str, str]] = {
        CPU: {},
        CUDA: {
            # The default tries every convolution algorithm for every new batch size; there is one convolution.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",  # instead of doubling, as on the CPU
        },
        TENSORRT: _tensorrt_shapes(execution, sizes_px) | _tensorrt_cache(cache),
    }
    return [(name, options[name]) for name in execution.providers]


def session_options(execution: Execution) -> ort.SessionOptions:
    """Options of every session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = execution.threads
    options.inter_op_num_threads = 1  # the graph is a chain: there is nothing to run beside
    options.log_severity_level = 3
    # Image size, batch size and kept patches change from run to run, so a plan for one shape's memory rarely fits the
    # next. The arena stays on, one for all models: it keeps the largest run's memory, and `warm_up` makes a large one
    # first, so that the process has about its size before it is ready and not under its first load.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    # `session.intra_op.allow_spinning` stays at its default, on: between the operators of a run threads would
    # otherwise sleep and wake hundreds of times a batch. They share the CPUs with decoding, the event loop and other
    # models, so they stop when the run ends, and sooner where one waits for another that has lost its CPU: the
    # runtime's own limit is tens of milliseconds, which is never.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    _share_arena()
    return options


def available_providers() -> list[str]:
    """The execution providers that can run here. A runtime built for GPUs names theirs where no GPU is as well."""
    found: list[Any] = ort.get_available_providers()
    return [str(name) for name in found if name not in (CUDA, TENSORRT) or _finds_gpu()]


def _finds_gpu() -> bool:
    """Whether CUDA's libraries load and give memory; if not, ONNX Runtime says on stderr what is missing."""
    try:
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception:  # the runtime's errors have no common base class but this
        return False
    return True


def _tensorrt_shapes(execution: Execution, sizes_px: Sequence[int]) -> dict[str, str]:
    """One engine for all shapes; without these it is built anew, for minutes, at each new one.

    Of the float16 graph alone, which is one engine: where operators of ONNX Runtime's own cut a graph, the provider
    refuses shapes that don't name the inputs of every piece.
    """
    if execution.precision != "float16":
        return {}
    return {
        "trt_profile_min_shapes": _shapes(1, min(sizes_px)),
        "trt_profile_opt_shapes": _shapes(max(1, execution.max_batch_size // 2), max(sizes_px)),
        "trt_profile_max_shapes": _shapes(execution.max_batch_size, max(sizes_px)),
    }


def _tensorrt_cache(folder: Path | None) -> dict[str, str]:
    """Engines, and what was timed to build them, are kept; the provider makes anew what doesn't fit graph or shapes."""
    if folder is None:
        return {}
    switches = {f"trt_{kind}_cache_enable": "True" for kind in ("engine", "timing")}
    return switches | {f"trt_{kind}_cache_path": str(folder) for kind in ("engine", "timing")}


def _shapes(rows: int, size_px: int) -> str:
    return f"images:{rows}x{size_px}x{size_px}x3,threshold:{rows}"


@cache
def _share_arena() -> None:
    """Make the one CPU arena that all sessions of this process take their memory from."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_asked = 1  # instead of doubling
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, grow_as_asked, -1, -1))
