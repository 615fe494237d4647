"""Hostile and odd images by the thousand: each is decoded or refused by name, none costs memory that stays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.error_handlers import STATUS
from service.errors import ServiceError, TooLarge
from service.preprocess import ImageLimits, decode, resize_crop
from tests.images import (
    bad_images,
    encode,
    good_images,
    gradient,
    huge,
    interlaced_png,
    plain,
    stuffed_png,
    two_pictures_jpeg,
)

LIMITS = ImageLimits(max_bytes=20 << 20, max_pixels=50_000_000)
GROWTH_LIMIT_BYTES = 24 << 20  # of the process, over thousands of images
KINDS = ("PNG", "JPEG", "WEBP")


def small(kind: str) -> bytes:
    return encode(gradient(24, 18), kind)


def truncated(kind: str) -> Iterator[bytes]:
    data = small(kind)
    yield from (data[:length] for length in range(len(data)))


def flipped(kind: str, count: int, seed: int = 0) -> Iterator[bytes]:
    """Copies in which one to eight bits are wrong, most near the front, where the structure is."""
    draw, good = random.Random(seed), small(kind)
    for _ in range(count):
        data = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(64, len(data)))
            data[at] ^= 1 << draw.randrange(8)
        yield bytes(data)


def bombs() -> dict[str, bytes]:
    named = {f"{kind} header": huge(kind) for kind in KINDS}
    return named | {f"{chunk.decode()} chunk": stuffed_png(chunk, 64) for chunk in (b"zTXt", b"iCCP", b"IDAT")}


def outcome(data: bytes) -> int:
    """The status this image gets; anything but an image or an error of the tree is raised."""
    try:
        array = resize_crop(decode(data, LIMITS), 28)
    except ServiceError as error:
        return STATUS[type(error)].status
    assert array.shape == (28, 28, 3)
    return 200


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_at_any_length_is_refused_or_decoded(kind: str) -> None:
    statuses = [outcome(data) for data in truncated(kind)]
    assert set(statuses) <= {200, 415, 422}
    assert statuses[0] == statuses[len(statuses) // 2] == 422
    assert statuses.count(200) < 32  # only what lacks a tail that holds no pixels


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_with_wrong_bits_is_refused_or_decoded(kind: str) -> None:
    statuses = [outcome(data) for data in flipped(kind, 1500)]
    assert set(statuses) <= {200, 413, 415, 422}
    assert statuses.count(422) > 100  # the corpus does reach the decoders' errors


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_promises_too_much_is_refused_before_anything_is_decoded(kind: str) -> None:
    before = rss_bytes()
    with pytest.raises(TooLarge):
        decode(huge(kind), LIMITS)
    assert rss_bytes() - before < 4 << 20


def test_bombs_cost_no_memory() -> None:
    made = bombs()  # which takes the memory that is looked for
    before = rss_bytes()
    for name, data in made.items():
        assert len(data) < 1 << 20
        assert outcome(data) in (200, 413, 422), name
    assert rss_bytes() - before < GROWTH_LIMIT_BYTES


def test_memory_is_flat_over_all_of_them() -> None:
    corpus = [
        two_pictures_jpeg(),
        *good_images().values(),
        *(data for data, _ in bad_images().values()),
        *bombs().values(),
    ]
    for kind in KINDS:
        corpus += [*truncated(kind), *flipped(kind, 200)]
    for data in corpus:  # once, so that what is allocated once is there
        outcome(data)
    before = rss_bytes()
    for _ in range(3):
        for data in corpus:
            outcome(data)
    assert rss_bytes() - before < GROWTH_LIMIT_BYTES, f"{len(corpus)} images"


def test_an_interlaced_png_is_the_same_image() -> None:
    interlaced, straight = (np.asarray(decode(data, LIMITS)) for data in (interlaced_png(28, 9), plain(9)))
    assert np.array_equal(interlaced, straight)


def test_only_the_first_picture_of_a_file_is_taken() -> None:
    image = decode(two_pictures_jpeg(), LIMITS)
    assert image.mode == "RGB"
    assert np.asarray(image).reshape(-1, 3).mean(axis=0) == pytest.approx([254, 0, 0], abs=2)  # the red one
    assert isinstance(image, Image.Image)


def test_a_sample_through_http_gets_no_5xx_and_costs_no_memory(client: TestClient) -> None:
    sample = [*good_images().values(), *(data for data, _ in bad_images().values())]
    sample += [data for data in bombs().values() if len(data) < 90_000]
    for kind in KINDS:
        sample += [*list(truncated(kind))[::17], *flipped(kind, 60, seed=1)]

    def post_all() -> list[int]:
        return [client.post("/v1/classify", content=data).status_code for data in sample]

    statuses = post_all()
    before = rss_bytes()
    assert post_all() == statuses
    assert set(statuses) <= {200, 413, 415, 422}
    assert {200, 413, 415, 422} <= set(statuses)
    assert rss_bytes() - before < GROWTH_LIMIT_BYTES
