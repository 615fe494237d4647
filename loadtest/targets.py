"""Who is asked, and what the answer says: this service's `/v1/classify` or an Open Inference Protocol server.

A target prepares requests before a run and reads answers after it; what a run does in between is `client.py`'s.
"""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from yarl import URL

from loadtest import records
from loadtest.client import Prepared, Shot
from loadtest.data import LabelledImages, image_format
from loadtest.records import OUTCOMES, PHASES, Records

_LATE, _REFUSED = (504,), (429, 503)
_READ_TIMEOUT_S = 10.0


class TargetError(RuntimeError):
    """A server that can't be measured: not there, not ready, or it knows other labels."""


class Answer(NamedTuple):
    """What one good answer says."""

    labels: list[str]  # best first
    numbers: dict[str, float]  # by the names of `records.ANSWERED`
    layers: list[float] | None = None  # skipped share of the patches in every layer


class Target(Protocol):
    """A server under test."""

    url: str

    def describe(self) -> dict[str, Any]:
        """Name, version and labels of what is served; raises TargetError."""

    def prepare(self, query: str, image: bytes, deadline_ms: int | None, hang_up_s: float | None) -> Prepared:
        """The request for one image at one operating point."""

    def read(self, body: bytes) -> Answer:
        """What an answer says; raises ValueError, KeyError or TypeError when it isn't one."""


class Classify:
    """`POST /v1/classify` with the image as the body."""

    def __init__(self, url: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """`headers` go with every request."""
        self.url = url.rstrip("/")
        self._headers = headers
        self._urls: dict[str, URL] = {}

    def describe(self) -> dict[str, Any]:
        """The default model's name, version, labels and gated layers."""
        models = get_json(f"{self.url}/v1/models", self._headers)["models"]
        if not models:
            raise TargetError(f"{self.url} serves no model")
        manifest = get_json(f"{self.url}/v1/models/{models[0]['name']}", self._headers)
        return {name: manifest.get(name) for name in ("name", "version", "labels", "gated_layers", "presets", "graphs")}

    def prepare(self, query: str, image: bytes, deadline_ms: int | None, hang_up_s: float | None) -> Prepared:
        """The image as it is; the deadline as a header."""
        url = self._urls.setdefault(query, URL(f"{self.url}/v1/classify?{query}", encoded=True))
        headers = {**self._headers, "Content-Type": f"image/{image_format(image)}"}
        if deadline_ms is not None:
            headers["X-Request-Timeout-Ms"] = str(deadline_ms)
        return Prepared(url, image, headers, hang_up_s)

    def read(self, body: bytes) -> Answer:
        """Labels, what it cost and where the time went; a server that tells labels only is fine."""
        document = json.loads(body)
        result, timing = document["results"][0], document.get("timing_ms", {})
        labels = [str(prediction["label"]) for prediction in result["predictions"]]
        numbers = {f"{phase}_s": timing[phase] / 1e3 for phase in PHASES if phase in timing}
        numbers |= {name: float(result[name]) for name in ("threshold", "size_px") if name in result}
        numbers |= {name: float(result.get(name, False)) for name in ("degraded", "cached")}
        numbers["batch_size"] = float(document.get("batch_size", np.nan))
        layers = None
        if "macs" in result:
            numbers["macs_ratio"] = float(result["macs"]["ratio"])
        if skipped := result.get("skipped_patches"):
            numbers["skipped_ratio"] = skipped["mean"] / skipped["patches"]
            layers = [count / skipped["patches"] for count in skipped["per_layer"]]
        return Answer(labels, numbers, layers)


class Oip:
    """Open Inference Protocol with binary tensors (Triton too): `images` UINT8 [1, S, S, 3] in, `logits` out.

    Images are decoded and resized before the run, so such a server is spared what the others do for each request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        size_px: int,
        labels: Sequence[str],
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`headers` go with every request."""
        self._headers = headers
        self.url = url.rstrip("/")
        self._infer = URL(f"{self.url}/v2/models/{model}/infer", encoded=True)
        self._model, self._size_px, self._labels = model, size_px, list(labels)
        self._tensors: dict[bytes, bytes] = {}

    def describe(self) -> dict[str, Any]:
        """The model's metadata; the protocol has no labels, so the caller's count."""
        found = get_json(f"{self.url}/v2/models/{self._model}", self._headers)
        return {"name": found.get("name"), "version": (found.get("versions") or [""])[0], "labels": self._labels}

    def prepare(self, query: str, image: bytes, deadline_ms: int | None, hang_up_s: float | None) -> Prepared:
        """One binary tensor; a threshold in the query becomes the protocol's parameter."""
        parameters: dict[str, Any] = {} if deadline_ms is None else {"timeout": deadline_ms * 1000}
        if query.startswith("threshold="):
            parameters["threshold"] = float(query.partition("=")[2])
        pixels = self._tensors.get(image)
        if pixels is None:
            pixels = self._tensors[image] = _pixels(image, self._size_px)
        tensor = {
            "name": "images",
            "shape": [1, self._size_px, self._size_px, 3],
            "datatype": "UINT8",
            "parameters": {"binary_data_size": len(pixels)},
        }
        output = {"name": "logits", "parameters": {"binary_data": True}}
        head = json.dumps({"parameters": parameters, "inputs": [tensor], "outputs": [output]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return Prepared(self._infer, head + pixels, {**self._headers, **headers}, hang_up_s)

    def read(self, body: bytes) -> Answer:
        """The five best labels of the binary logits, which are all of the tail."""
        size = 4 * len(self._labels)
        document = json.loads(body[:-size])
        if document["outputs"][0]["name"] != "logits":
            raise ValueError("the first output isn't the logits")
        logits = np.frombuffer(body[-size:], "<f4")
        return Answer([self._labels[index] for index in np.argsort(-logits, kind="stable")[:5]], {})


def check_labels(target: Target, images: LabelledImages) -> dict[str, Any]:
    """What is served, once every image's label is known to be one of its labels.

    Raises:
        TargetError: nobody answers, or the labels are others: accuracy would mean nothing.
    """
    model = target.describe()
    known = {plain(name) for name in model["labels"] or ()}
    strangers = sorted({name for name in images.labels if plain(name) not in known})
    if strangers:
        shown = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise TargetError(
            f"{len(strangers)} of the labels of {images.source} are none of {model['name']}'s {len(known)}: {shown}"
        )
    return model


def collect(target: Target, shots: Sequence[Shot], labels: Sequence[str], plan: Sequence[tuple[int, int]]) -> Records:
    """Shots as records: answers read and held against each image's label.

    Args:
        target: who answered.
        shots: what became of each request.
        labels: of every image.
        plan: (image, operating point) of every prepared request.
    """
    names = [plain(label) for label in labels]
    rows, errors = [], Counter[str]()
    layers: dict[int, list[list[float]]] = {}
    for shot in shots:
        image, point = plan[shot.number]
        row = {
            "due_s": shot.due_s,
            "lag_s": shot.sent_s - shot.due_s,
            "latency_s": shot.done_s - shot.due_s,
            "image": image,
            "point": point,
        }
        outcome, detail = _outcome(shot)
        if outcome == "ok":
            try:
                answer = target.read(shot.body)
                guesses = [plain(label) for label in answer.labels[:5]]
                row |= answer.numbers | {"top1": guesses[0] == names[image], "top5": names[image] in guesses}
                if answer.layers:
                    layers.setdefault(point, []).append(answer.layers)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                outcome, detail = "garbage", f"garbage: status {shot.status} with {_shown(shot.body)}"
        if detail:
            errors[detail] += 1
        rows.append(row | {"outcome": OUTCOMES.index(outcome)})
    return records.build(rows, errors, layers)


def plain(label: str) -> str:
    """A label as it is compared: `Maple tree` and `maple_tree` are one."""
    return label.strip().lower().replace(" ", "_").replace("-", "_")


def get_json(url: str, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
    """The JSON document at a URL.

    Raises:
        TargetError: nobody listens, or what answers isn't such a server.
    """
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=_READ_TIMEOUT_S) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        mend = "give its key with --headers" if error.code == 401 else "is that the service's address?"
        raise TargetError(f"{url} answers {error.code}: {mend}") from None
    except json.JSONDecodeError:
        raise TargetError(f"{url} answers something that isn't JSON: is that the service's address?") from None
    except Exception as error:  # a reset, a broken HTTP answer, no route: urllib raises a dozen types
        reason = getattr(error, "reason", error)
        raise TargetError(f"{url} can't be reached: {reason or type(error).__name__}") from None


def _outcome(shot: Shot) -> tuple[str, str]:
    if shot.error:
        return shot.error.split(":")[0], shot.error
    if shot.status == 200:
        return "ok", ""
    outcome = "refused" if shot.status in _REFUSED else "late" if shot.status in _LATE else "failed"
    if 300 <= shot.status < 500 and outcome == "failed":
        outcome = "invalid"
    try:
        document = json.loads(shot.body)
        title = document.get("title") or document.get("error") or ""
    except (ValueError, AttributeError):
        title = ""
    return outcome, f"{shot.status} {str(title)[:100]}".strip()


def _shown(body: bytes) -> str:
    return repr(body[:40].decode("ascii", "replace")) + ("..." if len(body) > 40 else "")


def _pixels(image: bytes, size_px: int) -> bytes:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    w, h = picture.size
    side = min(w, h)
    box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
    return np.asarray(picture.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)).tobytes()
