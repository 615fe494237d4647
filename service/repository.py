"""The model repository: which bundles there are, which of them are served, and how one is loaded, replaced, let go.

A model is loaded and warmed aside, then takes its name in one step; who had chosen the old one finishes with it, and
only then does its memory go. So a reload loses no request, and one that fails changes nothing. It knows no protocol.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from service import heap
from service.artifact import MANIFEST, Bundle
from service.batcher import Batcher
from service.decode_pool import DecodePool
from service.engine import Engine
from service.errors import BundleError, NotAllowed, NotReady, ServiceError, UnknownModel
from service.metrics import Metrics
from service.served_model import ServedModel, load_engine, load_model_bundle, serve_model
from service.settings import Settings

logger = logging.getLogger("skipvit.repository")

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a manifest's; so no name leads out of the folder


class ModelState(NamedTuple):
    """One model of the repository; the version is empty where there is none to read."""

    name: str
    version: str
    state: State
    reason: str


class Repository:
    """The folder of bundles, and the models served from it. Every method belongs to the event loop."""

    def __init__(
        self,
        settings: Settings,
        default_name: str,
        metrics: Metrics,
        decoders: DecodePool,
        load: Callable[[Settings, Bundle], Engine] = load_engine,
    ) -> None:
        """`load` makes a bundle's engine, warm; it runs on a thread, one at a time, and raises BundleError."""
        self.default_name = default_name
        self.models: dict[str, ServedModel] = {}  # by name; what isn't in it isn't served
        self._settings = settings
        self._metrics = metrics
        self._decoders = decoders
        self._load_engine = load
        self._reasons: dict[str, str] = {}  # why a model isn't served, or what its last load failed of
        self._awaited: set[str] = set()  # named by the settings and not yet served
        self._loading: str | None = None
        self._retired: set[ServedModel] = set()  # replaced or unloaded, and still in use
        self._on_complete: Callable[[], None] = lambda: None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def batchers(self) -> list[Batcher]:
        """Of all models that may have work, retired ones too."""
        return [model.batcher for model in (*self.models.values(), *self._retired)]

    async def open(self, bundle: Bundle | None = None, engine: Engine | None = None) -> None:
        """Serve the default model, loading what isn't given; BundleError if that fails."""
        if bundle is None:
            bundle = await asyncio.to_thread(load_model_bundle, self._settings, self.default_name)
        if engine is None:
            engine = await asyncio.to_thread(self._load_engine, self._settings, bundle)
        self._serve(bundle, engine)

    def open_others(self, then: Callable[[], None]) -> None:
        """Load the further models of the settings, beside the loop, and call `then`; at once if there are none.

        One that fails is noted in the index. If the settings name it, `then` waits until it is loaded over the API;
        of `all` it is left out.
        """
        wanted = self._settings.load_models
        names: Iterable[str] = () if wanted == "default" else (name.strip() for name in wanted.split(","))
        others = set(self._on_disk() if wanted == "all" else names) - {self.default_name, ""}
        self._awaited = set() if wanted == "all" else others
        self._on_complete = then
        if others:
            self._spawn(self._load_each(sorted(others)))
        else:
            then()

    @property
    def awaited(self) -> dict[str, str]:
        """The models that the settings name and that aren't served yet, and why, where a load has failed."""
        return {name: self._reasons.get(name, "") for name in sorted(self._awaited)}

    async def load(self, name: str) -> None:
        """Load the model `name`, or load it anew if its bundle has changed; returns when it is served.

        Raises:
            UnknownModel: the repository has no such folder.
            BundleError: the bundle is broken or its engine doesn't run; what was served before still is.
        """
        await asyncio.shield(self._spawn(self._load(name)))  # a caller who leaves doesn't leave a load half done

    async def unload(self, name: str) -> None:
        """Serve the model no more; requests that have chosen it still finish. Nothing to do if it isn't loaded.

        Raises:
            UnknownModel: neither served nor in the repository.
            NotAllowed: it's the default model.
        """
        if name == self.default_name:
            raise NotAllowed(f"{name!r} stays loaded: it answers requests that name no model (SKIPVIT_DEFAULT_MODEL)")
        async with self._turn:
            model = self.models.pop(name, None)
            if model is None:
                if name not in await asyncio.to_thread(self._on_disk):
                    raise UnknownModel(f"no model {name[:100]!r} is served here, nor is it in the model repository")
                return
            self._metrics.forget(model.manifest)
            self._reasons[name] = "unloaded"
            self._retire(model)
            logger.info("unloaded %s %s", name, model.manifest.version)

    async def index(self, *, only_ready: bool = False) -> list[ModelState]:
        """Every model that is in the folder, served, or failed to load, by name."""
        versions = await asyncio.to_thread(self._on_disk)
        names = sorted({*versions, *self.models, *self._reasons})
        states = [self._state(name, versions.get(name, "")) for name in names]
        return [state for state in states if state.state == "READY" or not only_ready]

    async def close(self, timeout_s: float) -> bool:
        """Finish what was accepted and stop; False if some had to be failed after `timeout_s`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()  # before the wait below, in which a load could still come to its end and serve
        return all(await asyncio.gather(*(model.close(timeout_s) for model in (*self.models.values(), *self._retired))))

    def _state(self, name: str, version_on_disk: str) -> ModelState:
        reason = self._reasons.get(name, "")
        if name in self.models:
            return ModelState(name, self.models[name].manifest.version, "READY", reason)
        if name == self._loading:
            return ModelState(name, version_on_disk, "LOADING", "")
        if any(model.name == name for model in self._retired):
            return ModelState(name, version_on_disk, "UNLOADING", "requests that had chosen it are finishing")
        return ModelState(name, version_on_disk, "UNAVAILABLE", reason or "not loaded")

    async def _load_each(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                await self.load(name)
            except Exception as error:  # whatever it is, the others are served
                self._reasons[name] = str(error) or repr(error)
        if not self._awaited:
            self._on_complete()

    async def _load(self, name: str) -> None:
        async with self._turn:
            if self._closed:
                raise NotReady("the service is shutting down")
            if not _NAME.fullmatch(name) or not (self._settings.model_repository / name).is_dir():
                raise UnknownModel(f"no bundle {name[:100]!r} in the model repository")
            self._loading = name
            try:
                bundle = await asyncio.to_thread(load_model_bundle, self._settings, name)
                served = self.models.get(name)
                if served is None or served.bundle.manifest != bundle.manifest:  # which has the digests of all files
                    self._serve(bundle, await asyncio.to_thread(self._load_engine, self._settings, bundle))
            except BundleError as error:
                self._reasons[name] = f"the last load failed: {error}"
                raise
            finally:
                self._loading = None
            self._reasons.pop(name, None)
        if name in self._awaited:
            self._awaited.discard(name)
            if not self._awaited:
                self._on_complete()

    def _serve(self, bundle: Bundle, engine: Engine) -> None:
        """Put a warm model in its place, from one request to the next."""
        old = self.models.get(bundle.manifest.name)
        if old is not None:
            self._metrics.forget(old.manifest)
        model = serve_model(self._settings, bundle, engine, self._metrics, self._decoders)
        self.models[model.name] = model
        if old is not None:
            self._retire(old)
        logger.info("serving %s %s", model.name, model.manifest.version)

    def _retire(self, model: ServedModel) -> None:
        self._retired.add(model)
        self._spawn(self._let_go(model))

    async def _let_go(self, model: ServedModel) -> None:
        await model.users.gone()
        await model.close(self._settings.drain_timeout_s)
        self._retired.discard(model)
        last: list[ServedModel] = [model]
        del model
        await asyncio.to_thread(_free, last)  # half a gigabyte: not on the loop

    def _on_disk(self) -> dict[str, str]:
        """The bundles in the folder by name, with the version that each manifest says."""
        found = {}
        try:
            folders = [path for path in self._settings.model_repository.iterdir() if _NAME.fullmatch(path.name)]
        except OSError:  # the default model may have come from elsewhere
            return {}
        for folder in folders:
            if (folder / MANIFEST).is_file():
                found[folder.name] = _version(folder / MANIFEST)
        return found

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ServiceError):
            logger.error("a model wasn't loaded: %s", error)
        elif error is not None:
            logger.error("loading or unloading met an unexpected error. This is a bug.", exc_info=error)


def _version(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_bytes())["version"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _free(last: list[ServedModel]) -> None:
    """Drop the last reference to a model, and give what the C library keeps of its memory back to the system."""
    last.clear()
    heap.trim()
