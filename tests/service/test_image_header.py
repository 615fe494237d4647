from __future__ import annotations

import io
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.errors import TooLarge
from service.image_header import excess, image_kind, image_size
from service.preprocess import ImageLimits, read
from tests.images import encode, good_images, gradient

GOOD = good_images()


@pytest.mark.parametrize("name", GOOD)
def test_type_and_size_agree_with_the_decoder(name: str) -> None:
    image = Image.open(io.BytesIO(GOOD[name]))
    kind = image_kind(GOOD[name])
    assert kind == image.format
    assert kind is not None
    assert image_size(GOOD[name], kind) == image.size


@pytest.mark.parametrize("name", ["rgb jpeg", "rgb png", "lossy webp", "lossless webp", "rgba webp"])
def test_a_header_cut_anywhere_gives_the_size_or_nothing(name: str) -> None:
    data = GOOD[name]
    kind = image_kind(data)
    assert kind is not None
    for length in range(len(data)):
        assert image_size(data[:length], kind) in (None, (40, 30))


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP"]), st.binary(max_size=200))
def test_noise_behind_a_magic_number_never_raises(magic: bytes, noise: bytes) -> None:
    kind = image_kind(magic + noise)
    assert kind is not None
    image_size(magic + noise, kind)
    excess(magic + noise, kind)


def jpeg(*, before_frame: bytes = b"", before_scan: bytes = b"") -> bytes:
    data = encode(gradient(), "JPEG")
    scan = data.index(b"\xff\xda")
    return data[:2] + before_frame + data[2:scan] + before_scan + data[scan:]


def scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG of so many empty scans: each is a dozen bytes, and a look at all of its blocks."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    frame = segment(0xC2, b"\x08" + side.to_bytes(2, "big") * 2 + b"\x01\x01\x11\x00")
    tables = segment(0xDB, bytes([0] + [1] * 64)) + segment(0xC4, bytes([0, 1] + [0] * 15 + [0]))
    tables += segment(0xC4, bytes([0x10, 1] + [0] * 15 + [0xE0]))
    first = segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes((side // 8 + 1) ** 2 // 8 + 1)
    further = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + bytes(2)
    return b"\xff\xd8" + frame + tables + first + further * (count - 1) + b"\xff\xd9"


def png(chunks: int) -> bytes:
    data = encode(gradient(), "PNG")
    at = data.index(b"IDAT") - 4
    chunk = b"prVt"
    return data[:at] + (bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4, "big")) * chunks + data[at:]


EMPTY, EXIF, RESTART = b"\xff\xe5\x00\x02", b"\xff\xe1\x00\x0aExif\x00\x00xx", b"\xff\xd0"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (jpeg(before_scan=EMPTY * 2000), "1000 segments"),
        (jpeg(before_frame=EXIF * 2000), "1000 segments"),
        (jpeg(before_frame=RESTART * 2000), "1000 segments"),
        (jpeg(before_frame=b"\xff" * 70_000), "65536 bytes between segments"),
        (jpeg(before_scan=bytes(70_000)), "65536 bytes between segments"),
        (jpeg(before_frame=b"\xff\x00" * 40_000), "65536 bytes between segments"),
        (scans(101), "100 scans"),
        (scans(30, side=7000), "1000000000 pixels in all its scans"),
        (png(10_000), "10000 chunks"),
    ],
)
def test_what_has_more_pieces_than_pixels_warrant_is_refused_before_a_decoder_sees_it(data: bytes, said: str) -> None:
    started_s = time.perf_counter()
    with pytest.raises(TooLarge, match=said):
        read(data, ImageLimits(1 << 20, 50_000_000), 28)
    assert time.perf_counter() - started_s < 1


@pytest.mark.parametrize(
    "data",
    [
        *GOOD.values(),
        jpeg(before_scan=EMPTY * 900),
        jpeg(before_frame=b"\xff" * 60_000),
        jpeg(before_frame=b"\xff\xe2\xff\xff" + b"\xff\xda\x00\x02" * 16383 + b"x"),  # scans of a thumbnail
        scans(60),
        png(9000),
        encode(gradient(600, 400), "JPEG", progressive=True, quality=95),
        encode(gradient(600, 400), "JPEG", restart_marker_blocks=1),
    ],
)
def test_what_honest_files_have_isnt_too_much(data: bytes) -> None:
    kind = image_kind(data)
    assert kind is not None
    assert excess(data, kind) is None
    assert read(data, ImageLimits(1 << 20, 50_000_000), 28).shape == (28, 28, 3)
