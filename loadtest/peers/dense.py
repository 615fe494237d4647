"""The model that every peer serves: an encoded image in, five labels out, with ONNX Runtime as our service has it.

Settings come from the environment, because each server starts its workers in its own way: PEER_MODEL, PEER_LABELS (one
a line), PEER_THREADS, PEER_BATCH.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

MAX_BATCH = int(os.environ.get("PEER_BATCH", "32"))
BATCH_WAIT_S = 0.005  # for servers whose batches wait for company; ours don't


class DenseModel:
    """Loads the graph when it's made."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])
        self._labels = Path(os.environ["PEER_LABELS"]).read_text().splitlines()
        self._size_px = int(self._session.get_inputs()[0].shape[1])
        for batch in (1, MAX_BATCH):  # warm, as ours is before it says it's ready
            self._session.run(None, {"images": np.zeros((batch, self._size_px, self._size_px, 3), np.uint8)})

    def decode(self, image: bytes | Image.Image) -> NDArray[np.uint8]:
        """The largest centred square at the model's size (S, S, 3), bicubic, as our service does it."""
        picture = (Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image).convert("RGB")
        w, h = picture.size
        side = min(w, h)
        box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
        return np.asarray(picture.resize((self._size_px, self._size_px), Image.Resampling.BICUBIC, box=box))

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """The five best labels of every image of a batch."""
        (logits,) = self._session.run(None, {"images": np.stack(images)})
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [{"predictions": self._top(row)} for row in probabilities]

    def _top(self, row: NDArray[np.float32]) -> list[dict[str, Any]]:
        best = np.argsort(-row)[:5].tolist()
        return [{"index": i, "label": self._labels[i], "probability": float(row[i])} for i in best]
