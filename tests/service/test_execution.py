"""Where graphs run is settled once, and what can't be is refused with its mend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
import pytest

from service.artifact import Precision
from service.errors import SettingsError
from service.execution import (
    CPU,
    CUDA,
    TENSORRT,
    Execution,
    PrecisionChoice,
    Provider,
    available_providers,
    choose_execution,
    provider_entries,
    session_options,
)

GPU_RUNTIME = [TENSORRT, CUDA, CPU]
ALL: list[Precision] = ["float32", "float16", "int8"]


def chosen(provider: Provider, precision: Precision, available: list[str]) -> tuple[str, ...]:
    return settled(provider, precision, available).providers


def settled(
    provider: Provider, precision: PrecisionChoice, available: list[str], offered: Sequence[Precision] = ("float32",)
) -> Execution:
    return choose_execution(provider, precision, threads=2, max_batch_size=32, available=available, offered=offered)


@pytest.mark.parametrize(
    ("provider", "available", "offered", "expected"),
    [
        ("auto", [CPU], ALL, "int8"),
        ("cpu", GPU_RUNTIME, ALL, "int8"),
        ("auto", [CPU], ["float32", "float16"], "float32"),
        ("auto", GPU_RUNTIME, ALL, "float32"),
        ("tensorrt", GPU_RUNTIME, ALL, "float16"),
        ("tensorrt", GPU_RUNTIME, ["float32"], "float32"),
    ],
)
def test_left_open_the_precision_is_the_best_that_the_provider_has(
    provider: Provider, available: list[str], offered: list[Precision], expected: Precision
) -> None:
    assert settled(provider, "auto", available, offered).precision == expected


@pytest.mark.parametrize(
    ("provider", "precision", "available", "expected"),
    [
        ("auto", "float32", [CPU], (CPU,)),
        ("auto", "int8", [CPU], (CPU,)),
        ("auto", "float16", [CPU], (CPU,)),
        ("auto", "float32", GPU_RUNTIME, (CUDA, CPU)),
        ("auto", "float16", GPU_RUNTIME, (CUDA, CPU)),
        ("auto", "int8", GPU_RUNTIME, (CPU,)),
        ("cpu", "float32", GPU_RUNTIME, (CPU,)),
        ("cuda", "float16", GPU_RUNTIME, (CUDA, CPU)),
        ("tensorrt", "float16", GPU_RUNTIME, (TENSORRT, CUDA, CPU)),
    ],
)
def test_the_provider_is_what_was_asked_for_or_the_best_there_is(
    provider: Provider, precision: Precision, available: list[str], expected: tuple[str, ...]
) -> None:
    assert chosen(provider, precision, available) == expected


@pytest.mark.parametrize(
    ("provider", "precision", "available", "message"),
    [
        ("cuda", "float32", [CPU], "SKIPVIT_PROVIDER=cuda: ONNX Runtime runs only CPUExecutionProvider here; beside a"),
        ("tensorrt", "float16", [CUDA, CPU], "SKIPVIT_PROVIDER=tensorrt: ONNX Runtime runs only"),
        ("cuda", "int8", GPU_RUNTIME, "SKIPVIT_PRECISION=int8 is for CPUs, SKIPVIT_PROVIDER=cuda isn't one"),
    ],
)
def test_what_cant_be_is_refused_with_its_mend(
    provider: Provider, precision: Precision, available: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        chosen(provider, precision, available)


@pytest.mark.parametrize(("provider", "threads", "runs"), [("cpu", 2, 2), ("cpu", 8, 2), ("cpu", 1, 1), ("cuda", 2, 1)])
def test_a_cpu_with_threads_for_two_gets_two_runs_at_once(provider: Provider, threads: int, runs: int) -> None:
    execution = choose_execution(
        provider, "float32", threads=threads, max_batch_size=32, runs=2, available=GPU_RUNTIME, offered=ALL
    )
    assert execution.runs == runs


def test_tensorrt_gets_one_range_of_shapes_for_all_batches() -> None:
    execution = choose_execution(
        "tensorrt", "float16", threads=2, max_batch_size=24, available=GPU_RUNTIME, offered=ALL
    )
    assert execution.on_gpu
    entries = dict(provider_entries(execution, (98, 56)))
    assert list(entries) == [TENSORRT, CUDA, CPU]
    shapes = [entries[TENSORRT][f"trt_profile_{end}_shapes"] for end in ("min", "opt", "max")]
    assert shapes == [f"images:{rows}x{px}x{px}x3,threshold:{rows}" for rows, px in ((1, 56), (12, 98), (24, 98))]
    in_pieces = dict(provider_entries(execution._replace(precision="float32"), (98, 56)))
    assert in_pieces[TENSORRT] == {}  # the provider wants the shapes of every piece, or of none


def test_tensorrt_keeps_its_engines_where_it_is_told(tmp_path: Path) -> None:
    execution = choose_execution(
        "tensorrt", "float16", threads=2, max_batch_size=24, available=GPU_RUNTIME, offered=ALL
    )
    before, after = (dict(provider_entries(execution, (98, 56), cache)) for cache in (None, tmp_path))
    added = dict(after[TENSORRT].items() - before[TENSORRT].items())
    assert added == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert (before[CUDA], before[CPU]) == (after[CUDA], after[CPU])


@pytest.mark.parametrize(("gpu", "expected"), [(True, GPU_RUNTIME), (False, [CPU])])
def test_a_runtime_built_for_gpus_is_asked_whether_there_is_one(
    gpu: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(values: object, device: str, index: int) -> None:
        assert device == "cuda"
        if not gpu:
            raise RuntimeError("CUDA Provider not available, can't get interface for it")

    monkeypatch.setattr(ort, "get_available_providers", lambda: GPU_RUNTIME)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", place)
    assert available_providers() == expected


def test_options_are_those_that_the_runtime_takes() -> None:
    execution = choose_execution(
        "auto", "float32", threads=3, max_batch_size=8, available=available_providers(), offered=ALL
    )
    options = session_options(execution)
    assert options.intra_op_num_threads == 3
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert 0 < int(options.get_session_config_entry("session.intra_op.spin_duration_us")) <= 1000
    assert set(execution.providers) <= set(ort.get_available_providers())
