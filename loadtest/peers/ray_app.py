"""Ray Serve: one replica, `@serve.batch`; images are decoded before they queue for a batch."""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from loadtest.peers.dense import BATCH_WAIT_S, MAX_BATCH, DenseModel


@serve.deployment(num_replicas=1, max_ongoing_requests=1024)
class Classify:
    """One image a request, as the form's part `image`."""

    def __init__(self) -> None:
        self.model = DenseModel()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def run(self, images: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """One batch."""
        return self.model.classify(images)

    async def __call__(self, request: Any) -> Any:
        """One request."""
        form = await request.form()
        return await self.run(self.model.decode(await form["image"].read()))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # Ray's own would leave its other processes behind
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        serve.run(Classify.bind(), route_prefix="/classify")  # type: ignore[attr-defined]
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
