"""Settings: everything an operator may turn, read from `SKIPVIT_*` once, by whoever builds the application.

Each field says what it trades off. This file knows what the values mean for no other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "SKIPVIT_"
DEFAULT_PORT = 8000

PresetName = Literal["full", "balanced", "economy"]
EngineName = Literal["onnxruntime", "torchscript"]


class Settings(BaseSettings):
    """The service's settings; frozen, so what was checked at start is what runs."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    model_repository: Path = Field(Path("models/zoo"), description="Folder that holds model bundles, one folder each.")
    default_model: str = Field(
        "cifar100-vits14", min_length=1, description="Bundle to serve, by the name of its folder."
    )
    load_models: str = Field(
        "default",
        min_length=1,
        description="Bundles to load at the start: `default` only, `all` of the repository that can be, or names with "
        "commas between, without which the service isn't ready. Each takes its weights' memory and, at work, CPU.",
    )
    repository_control: bool = Field(
        False,
        description="Whether callers may load, reload and unload models over the API (/v2/repository). Convenient to "
        "operate; whoever reaches the port can then take models away. A reload needs room for a second model "
        "and for loading it (the default bundle's: 560 MB) while it lasts.",
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 takes requests from other machines."
    )
    port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the Open Inference Protocol over gRPC, which needs the extra `grpc`; unset is off, 0 lets "
        "the system choose. Saves callers who send tensors the JSON and costs a second port to guard.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads that compute one batch; 0 takes the CPUs the process may use. Fewer leave CPU to decoding "
        "and to neighbours, at the price of slower batches.",
    )
    concurrent_runs: int = Field(
        2, ge=1, le=2, description="Batches that share the CPUs at once. 2 answers more under load, 1 a batch sooner."
    )
    engine: EngineName = Field(
        "onnxruntime",
        description="What runs the model. torchscript, for machines that have torch anyway, needs the extra "
        "`service-torch` and files that `python -m export --format torchscript` writes; it takes more memory and has "
        "no int8.",
    )
    precision: Literal["auto", "float32", "float16", "int8"] = Field(
        "auto",
        description="Of the large matrix products. auto takes int8 on CPUs and float16 under TensorRT if the bundle "
        "has them, else float32: int8 answers 1.3 to 2.8 times as many images. float16 is for GPUs. With either a few "
        "answers change, the manifest says how many.",
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto",
        description="Where the graphs run: auto takes CUDA where ONNX Runtime finds a GPU, but the CPU for int8, and "
        "the CPU otherwise. tensorrt may be faster than cuda, and builds its engines for minutes.",
    )
    engine_cache: Path = Field(
        Path("~/.cache/skipvit"),
        description="Folder for int8 graphs as the runtime optimised them, and TensorRT's engines: the next start is "
        "sooner. Nobody else may write there. /dev/null, or where it can't be written, makes them at every start.",
    )
    decode_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Images decoded at once; 0 takes the CPUs the process may use, 4 at most. More feed the batcher "
        "faster but take CPU from inference, and each may hold a whole decoded image in memory.",
    )
    max_batch_size: int = Field(
        32,
        ge=1,
        le=1024,
        description="Images in one batch. Larger gives throughput under load; a late request may wait for all of them.",
    )
    max_pending_images: int = Field(
        256,
        ge=1,
        le=65536,
        description="Images that may wait before new ones get 429. Larger rides out bursts; smaller fails sooner "
        "instead of answering late.",
    )
    max_pending_work_s: float = Field(
        2.0,
        gt=0,
        description="Seconds of predicted work that may wait before new images get 429; counts what they cost, not how "
        "many they are. Larger rides out bursts; smaller fails sooner instead of answering late.",
    )
    max_batch_work_s: float = Field(
        0.4,
        gt=0,
        description="Predicted seconds of one batch. Longer gives a little more throughput under load; a late request "
        "may wait for all of it.",
    )
    adaptive: bool = Field(
        True,
        description="Lower the compute of new requests while the queue's delay is above adaptive_target_s, down to "
        "min_compute. Keeps latency and refuses less, at the price of accuracy; answers say `degraded`.",
    )
    adaptive_target_s: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Queue delay above which compute is lowered; the time of two images at full compute if that is "
        "longer. Shorter keeps answers fast; longer keeps them exact.",
    )
    min_compute: dict[PresetName, Annotated[float, Field(ge=0, le=1)]] = Field(
        {"full": 0.5, "balanced": 0.26, "economy": 0.26},
        description="Share of the dense model's time that load may lower each preset to, as JSON. Lower holds more "
        "load; higher keeps more accuracy. What is absent is never lowered.",
    )
    guard_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the answers (of presets and compute shares) that is computed again at full compute while "
        "the engine is idle, to see how often both agree. More notices a loss sooner and takes idle CPU; 0 is off.",
    )
    min_agreement: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Share of those that must agree on the first label; below it load lowers compute less. Higher "
        "keeps accuracy, lower holds more load.",
    )
    cache_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of answers kept for images seen before; 0 is off. An image that is sent again, or twice at "
        "once, is computed once; an answer with more compute serves a request for less.",
    )
    default_preset: PresetName = Field(
        "balanced", description="What a request that names no threshold, compute share or preset gets."
    )
    default_timeout_s: float = Field(
        30.0,
        gt=0,
        le=600,
        description="Deadline of a request that sets none. Longer keeps slow answers; shorter frees the queue for "
        "callers who still wait.",
    )
    max_image_bytes: int = Field(
        20 * 1024 * 1024, ge=1, description="Bytes of one encoded image. Larger takes bigger photos and more memory."
    )
    max_request_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        description="Bytes of one body, all its parts together. Bounds the memory one caller can take.",
    )
    # Pillow itself warns above 89,478,485 pixels, process-wide; our limit stays below so that it never has to.
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=89_000_000,
        description="Pixels of one image, read from its header before decoding. A pixel takes 3 bytes once decoded, "
        "and up to 17 while it is being decoded if it has transparency.",
    )
    max_images_per_request: int = Field(
        32, ge=1, le=1024, description="Images in one multipart body. More saves round trips; fewer shares the queue."
    )
    hang_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Time without progress, with work waiting, after which /healthz fails. Shorter restarts a hung "
        "process sooner; too short kills a slow one.",
    )
    keep_alive_timeout_s: int = Field(
        65,
        ge=1,
        description="Idle time after which a connection is closed. Keep it above the proxy's own, or the proxy may "
        "send into a closing connection.",
    )
    drain_delay_s: float = Field(
        1.0,
        ge=0,
        le=300,
        description="Time between failing /readyz and closing the port on SIGTERM. Longer lets load balancers notice; "
        "shorter stops sooner.",
    )
    drain_timeout_s: float = Field(
        20.0,
        gt=0,
        le=600,
        description="Time accepted requests get to finish on shutdown; those left then fail. Keep the orchestrator's "
        "grace period above drain_delay_s + drain_timeout_s.",
    )

    # Who may call, and what a connection may take.
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys as `name:hash` lines of `python -m service.api_keys NAME`, separated by commas or "
        "spaces. None here and none in a file lets everybody in.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of such lines, read anew when it changes. Safer than the environment, which child processes "
        "and crash reports see.",
    )
    cors_origins: Annotated[tuple[Annotated[str, Field(pattern=r"^\*$|://")], ...], NoDecode] = Field(
        (),
        description="Origins (https://example.com) whose web pages may call, separated by commas, or * for all. None "
        "keeps other sites' scripts out of what a visitor's browser can reach.",
    )
    max_header_bytes: int = Field(
        16 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="Bytes of a request's header. More takes longer tokens; each connection may hold as much.",
    )
    max_connections: int = Field(
        900,
        ge=1,
        le=100_000,
        description="Connections at once; idle ones make room for new ones, then new ones get 503. More takes more "
        "clients; keep it below the limit of open files (ulimit -n).",
    )
    client_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Time a client gets to send a header, then a body, and to take an answer. Longer suits large "
        "images over thin lines; shorter cuts clients off that only hold a connection.",
    )

    # What operators see.
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of a listener for /metrics, /healthz and /readyz alone, without API keys; /metrics leaves "
        "the other port. Keeps metrics from clients, and scrapes apart from traffic.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or JSON objects for a collector: longer, but with each request's cost."
    )
    log_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the requests without error that are logged. Less saves disk and CPU; errors are always "
        "logged.",
    )
    tracing: bool = Field(
        False,
        description="Send OpenTelemetry traces, as the OTEL_* variables say; needs the extra `otel`. Costs CPU for "
        "each sampled request.",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_link(cls, value: object) -> object:
        # Kubernetes sets SKIPVIT_PORT=tcp://10.0.0.1:8000 in every pod beside a Service that is named `skipvit`
        # (enableServiceLinks); it's there only if nobody set the variable on purpose.
        return DEFAULT_PORT if isinstance(value, str) and value.startswith("tcp://") else value

    @field_validator("grpc_port", "metrics_port", mode="before")
    @classmethod
    def _ignore_further_links(cls, value: object) -> object:  # as above: Services `skipvit-grpc`, `skipvit-metrics`
        return None if isinstance(value, str) and value.startswith("tcp://") else value

    @property
    def asks_for_keys(self) -> bool:
        """Whether callers need an API key."""
        return bool(self.api_keys.get_secret_value().strip(" ,\n")) or self.api_keys_file is not None


def explain_settings_error(error: ValidationError) -> str:
    """One line for a person: each wrong setting by its environment name, what it was and what it takes."""
    parts = []
    for item in error.errors():
        name = ENV_PREFIX + "_".join(str(part) for part in item["loc"]).upper()
        parts.append(f"{name}={item['input']!r}: {item['msg']}")
    return "; ".join(parts)
