"""LitServe: one inference worker, batches of up to PEER_BATCH; decoding happens in that worker, as its API has it."""

from __future__ import annotations

import sys
from typing import Any

import litserve as ls
import numpy as np
from numpy.typing import NDArray

from loadtest.peers.dense import BATCH_WAIT_S, MAX_BATCH, DenseModel


class Classify(ls.LitAPI):  # type: ignore[misc]
    """One image a request, as the form's part `image`."""

    def setup(self, device: str) -> None:
        """Once in the worker."""
        self.model = DenseModel()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe takes an annotation for a schema
        """The form's image."""
        return self.model.decode(request["image"].file.read())

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Stacked by the model."""
        return inputs

    def predict(self, x: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """One batch."""
        return self.model.classify(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer an image."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """JSON as it is."""
        return output


if __name__ == "__main__":
    api = Classify(max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S, api_path="/classify")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
