"""What a request brought goes when it ends: nothing waits for Python to look for rings; all together have a limit."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from service.body import BodyBudget
from service.errors import Overloaded
from service.settings import Settings
from service.tensors import led_by_length
from tests.fakes import FakeEngine
from tests.images import encode, plain
from tests.service.live import live_server

MEGABYTE = 1 << 20
REQUESTS = 20
PHOTO = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)), "PNG")
FORM = "multipart/form-data; boundary=b"


def part(content: bytes, name: str = "image") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), content)


def encoded_images(content: bytes) -> tuple[dict[str, str], bytes]:
    tensor = led_by_length([content])
    inputs = {"name": "encoded_images", "datatype": "BYTES", "shape": [1]}
    head = json.dumps({"inputs": [{**inputs, "parameters": {"binary_data_size": len(tensor)}}]}).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + tensor


CASES: dict[str, tuple[str, dict[str, str], bytes, int]] = {
    "a body": ("/v1/classify", {}, PHOTO, 200),
    "a body that is cut short": ("/v1/classify", {}, PHOTO[:-9000], 422),
    "a form": ("/v1/classify", {"Content-Type": FORM}, part(PHOTO) + b"--b--", 200),
    "a form with a broken image": ("/v1/classify", {"Content-Type": FORM}, part(PHOTO[:-9000]) + b"--b--", 422),
    "a form with two, one broken": (
        "/v1/classify",
        {"Content-Type": FORM},
        part(plain()) + part(PHOTO[:-9000]) + b"--b--",
        422,
    ),
    "a form that isn't one": ("/v1/classify", {"Content-Type": FORM}, part(PHOTO) + b"--x", 400),
    "a form with another part": (
        "/v1/classify",
        {"Content-Type": FORM},
        part(PHOTO) + part(b"x", "other") + b"--b--",
        422,
    ),
    "a tensor": ("/v2/models/fake/infer", *encoded_images(PHOTO), 200),
    "a tensor of a broken image": ("/v2/models/fake/infer", *encoded_images(PHOTO[:-9000]), 422),
}


@pytest.fixture
def no_search_for_rings() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


async def post(port: int, path: str, headers: dict[str, str], body: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


@pytest.mark.parametrize("case", CASES)
async def test_whatever_becomes_of_a_request_its_bytes_go_at_once(case: str, no_search_for_rings: None) -> None:
    path, headers, body, status = CASES[case]
    assert len(PHOTO) > MEGABYTE
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        assert await post(live.port, path, headers, body) == status
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(REQUESTS):
            assert await post(live.port, path, headers, body) == status
        after, _ = tracemalloc.get_traced_memory()
    assert after - before < 2 * MEGABYTE, f"{(after - before) / MEGABYTE:.0f} MB of {REQUESTS} requests were kept"


@pytest.mark.parametrize("form", [False, True])
async def test_what_a_client_that_left_had_sent_goes_too(form: bool, no_search_for_rings: None) -> None:
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:

        async def leave() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
            kind = f"Content-Type: {FORM}\r\n" if form else ""
            head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\n{kind}Content-Length: 9000000\r\n\r\n"
            writer.write(head.encode() + part(PHOTO))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            while live.connections:
                await asyncio.sleep(0.001)

        await leave()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(REQUESTS):
            await leave()
        after, _ = tracemalloc.get_traced_memory()
    assert after - before < 2 * MEGABYTE


def test_a_share_counts_what_is_beyond_the_first_bytes_and_gives_it_back() -> None:
    budget = BodyBudget(MEGABYTE)  # eight bodies of it
    shares = [budget.share() for _ in range(9)]
    for share in shares[:8]:
        for _ in range(5):
            share.grow(MEGABYTE // 4)
    assert budget.held_bytes == 8 * MEGABYTE
    shares[8].grow(MEGABYTE // 4)  # a small one always has room
    with pytest.raises(Overloaded, match="8 MiB are being received"):
        shares[8].grow(1)
    shares[0].release()
    shares[0].release()
    shares[8].grow(1)
    for share in shares:
        share.release()
    assert budget.held_bytes == 0


async def test_bodies_that_fill_the_memory_are_429_and_small_images_are_answered_all_the_same() -> None:
    settings = Settings(drain_delay_s=0, max_request_bytes=MEGABYTE, max_image_bytes=MEGABYTE)
    async with live_server(FakeEngine(), settings) as live:
        held = []
        for _ in range(11):  # each holds 0.75 of 8 megabytes, and the last bytes don't come
            reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
            writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % MEGABYTE)
            writer.write(bytes(MEGABYTE - 1))
            await writer.drain()
            held.append((reader, writer))
        answer = await asyncio.wait_for(held[-1][0].readuntil(b"\r\n\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1" in answer.lower()
        assert await post(live.port, "/v1/classify", {}, plain(3)) == 200
        for _, writer in held:
            writer.close()
        while len(live.connections):
            await asyncio.sleep(0.001)
        assert await post(live.port, "/v1/classify", {}, bytes(MEGABYTE)) == 415  # and not 429: there is room again
