from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.image_header import image_kind, image_size
from tests.images import good_images

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
