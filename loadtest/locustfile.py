"""For teams that use Locust: labelled images at weighted operating points, and each one's accuracy at the end.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --users 8 --run-time 60s
    LOADTEST_MIX='threshold=0:3,preset=economy:1' locust -f loadtest/locustfile.py --host http://127.0.0.1:8000

Locust is a closed loop: a user waits for its answer, so a slow service is asked less often and its latency looks better
than what arrivals at a fixed rate would meet. `python -m loadtest` is the open loop. Needs the extra `locust`.
"""

from __future__ import annotations

import os
import random
from typing import Any

from locust import HttpUser, between, events, task

from loadtest import data
from loadtest.mix import point, weighted
from loadtest.targets import plain

MIX = weighted(os.environ.get("LOADTEST_MIX", "threshold=0"), point)
IMAGES = data.load(os.environ.get("LOADTEST_DATA", ""))
_right: dict[str, list[bool]] = {}  # operating point -> whether each answer was right


class Caller(HttpUser):  # type: ignore[misc]
    """Sends an image, reads the answer, thinks for a moment."""

    wait_time = between(0.0, 0.1)

    @task  # type: ignore[untyped-decorator]
    def classify(self) -> None:
        """One image at one operating point of the mix; a wrong label is a result, no answer is a failure."""
        (query,) = random.choices([name for name, _ in MIX], [share for _, share in MIX])
        index = random.randrange(len(IMAGES))
        image = IMAGES.encoded[index]
        headers = {"Content-Type": f"image/{data.image_format(image)}"}
        path = f"/v1/classify?{query}"
        with self.client.post(path, data=image, headers=headers, name=query, catch_response=True) as response:
            try:
                first = response.json()["results"][0]["predictions"][0]["label"]
            except (ValueError, KeyError, IndexError, TypeError):
                response.failure(f"{response.status_code}: no answer of /v1/classify")
                return
        _right.setdefault(query, []).append(plain(first) == plain(IMAGES.labels[index]))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def print_accuracy(**_: Any) -> None:
    """Accuracy of every operating point, once the test is over."""
    for query, right in sorted(_right.items()):
        print(f"{query}: top-1 {100 * sum(right) / len(right):.1f} % of {len(right)} answers")
