"""What the service adds to a request, as a ratio within one run: its CPU time against that of decoding one photo."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from service.preprocess import ImageLimits, read
from tests.images import encode, plain
from tests.service.process import FAKE, running

CONCURRENCY = 32
WARM_UP, REQUESTS = 10, 40  # of each client
DECODINGS = 60
LIMIT_RATIO = 1.0
LIMITS = ImageLimits(max_bytes=20 << 20, max_pixels=50_000_000)


def photo() -> bytes:
    """640 x 480 pixels with a photo's mixture of areas and detail."""
    noise = np.random.default_rng(0).normal(0, 12, (480, 640, 3))
    ramp = np.linspace(0, 200, 640)[None, :, None]
    return encode(Image.fromarray((ramp + noise + 20).clip(0, 255).astype(np.uint8)), "JPEG", quality=85)


def decode_cpu_s() -> float:
    data = photo()
    started_s = time.thread_time()
    for _ in range(DECODINGS):
        read(data, LIMITS, 112)
    return (time.thread_time() - started_s) / DECODINGS


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask_in_a_row(port: int, count: int) -> None:
    body = plain(3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    writer.close()


async def test_the_service_costs_less_cpu_than_decoding_a_photo() -> None:
    with running(FAKE, {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "0"}) as server:
        await asyncio.gather(*(ask_in_a_row(server.port, WARM_UP) for _ in range(CONCURRENCY)))
        before_cpu_s, before_s = cpu_s(server.process.pid), time.monotonic()
        await asyncio.gather(*(ask_in_a_row(server.port, REQUESTS) for _ in range(CONCURRENCY)))
        wall_s, used_s = time.monotonic() - before_s, cpu_s(server.process.pid) - before_cpu_s
        assert server.stop()[0] == 0
    count = CONCURRENCY * REQUESTS
    ratio = used_s / count / (decoding_s := decode_cpu_s())
    print(
        f"\n{count / wall_s:.0f} requests/s at concurrency {CONCURRENCY} with an engine that costs nothing; "
        f"{used_s / count * 1e3:.2f} ms CPU each, {ratio:.2f} of decoding a photo ({decoding_s * 1e3:.2f} ms)"
    )
    assert ratio < LIMIT_RATIO
