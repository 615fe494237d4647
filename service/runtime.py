"""The runtime that the settings choose, and its engine. Only the chosen one is imported; it knows no queue."""

from __future__ import annotations

import importlib.util

from service.artifact import Bundle
from service.cpu import usable_cpus
from service.engine import Engine
from service.errors import SettingsError
from service.settings import Settings

_NEEDS = {  # engine -> the package it imports, the extra that installs it
    "onnxruntime": ("onnxruntime", "'skipvit[service-cpu]' (a GPU: service-gpu)"),
    "torchscript": ("torch", "'skipvit[service-torch]'"),
}


def make_engine(settings: Settings, bundle: Bundle) -> Engine:
    """The chosen engine with every graph of the bundle, on as many threads as the settings or the CPUs allow.

    Raises:
        SettingsError: its runtime isn't installed, or doesn't have the precision; the message names the mend.
        BundleError: the engine can't load the bundle.
    """
    _check(settings)
    threads = settings.threads or usable_cpus()
    if settings.engine == "torchscript":
        from service.torchscript_engine import TorchScriptEngine

        on_gpu = {"auto": None, "cpu": False, "cuda": True}[settings.provider]
        return TorchScriptEngine(bundle, threads=threads, on_gpu=on_gpu)
    from service.onnx_engine import OnnxEngine

    return OnnxEngine(
        bundle,
        threads=threads,
        precision=settings.precision,
        provider=settings.provider,
        max_batch_size=settings.max_batch_size,
        runs=settings.concurrent_runs,
        cache=settings.engine_cache,
    )


def _check(settings: Settings) -> None:
    package, extra = _NEEDS[settings.engine]
    if importlib.util.find_spec(package) is None:
        raise SettingsError(
            f"SKIPVIT_ENGINE={settings.engine} needs {package}, which isn't installed: pip install {extra}, or set "
            "another SKIPVIT_ENGINE"
        )
    if settings.engine == "torchscript" and settings.provider == "tensorrt":
        raise SettingsError("SKIPVIT_PROVIDER=tensorrt is ONNX Runtime's: set SKIPVIT_ENGINE=onnxruntime")
    if settings.engine == "torchscript" and settings.precision not in ("auto", "float32"):
        raise SettingsError(
            f"SKIPVIT_PRECISION={settings.precision} isn't there with SKIPVIT_ENGINE=torchscript, which is float32 "
            "alone: set SKIPVIT_PRECISION=float32 or SKIPVIT_ENGINE=onnxruntime"
        )
