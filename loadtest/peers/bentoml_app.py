"""BentoML: an adaptive batching endpoint, one worker; its batcher learns how long to wait."""

from __future__ import annotations

from typing import Any

import bentoml
from PIL.Image import Image

from loadtest.peers.dense import MAX_BATCH, DenseModel


@bentoml.service(workers=1, traffic={"timeout": 60})
class Classify:
    """One image a request, as the form's part `image`."""

    def __init__(self) -> None:
        self.model = DenseModel()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, route="/classify")  # type: ignore[untyped-decorator]
    def classify(self, image: list[Image]) -> list[dict[str, Any]]:
        """One batch."""
        return self.model.classify([self.model.decode(one) for one in image])
