from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from models.preprocessing import to_rgb
from service.errors import BadImage, TooLarge, UnsupportedImageType
from service.preprocess import ImageLimits, decode, read, resize_crop
from tests.images import (
    bad_images,
    bomb_png,
    broken_exif_jpeg,
    encode,
    exif,
    good_images,
    gradient,
    grey16,
    palette,
    rgb16_png,
)

LIMITS = ImageLimits(max_bytes=3_000_000, max_pixels=50_000_000)
GOOD = good_images()
BAD = bad_images()


def pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(decode(data, LIMITS))


@pytest.mark.parametrize("name", GOOD)
def test_every_good_image_becomes_a_square_of_rgb(name: str) -> None:
    image = decode(GOOD[name], LIMITS)
    assert image.mode == "RGB"
    square = resize_crop(image, 14)
    assert square.shape == (14, 14, 3)
    assert square.dtype == np.uint8


@pytest.mark.parametrize("name", BAD)
def test_every_bad_image_is_refused_with_a_reason(name: str) -> None:
    data, status = BAD[name]
    expected = {413: TooLarge, 415: UnsupportedImageType, 422: BadImage}[status]
    with pytest.raises(expected, match=r"\w"):
        decode(data, LIMITS)


def test_a_lossless_image_keeps_its_pixels() -> None:
    assert np.array_equal(pixels(encode(gradient(), "PNG")), np.asarray(gradient()))
    assert np.array_equal(pixels(encode(gradient(), "WEBP", lossless=True)), np.asarray(gradient()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    data = encode(gradient(), "PNG", exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(pixels(data), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own word on it; the pixels are good
def test_broken_exif_doesnt_spoil_good_pixels() -> None:
    assert pixels(broken_exif_jpeg()).shape == (30, 40, 3)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = pixels(encode(grey16(), "PNG"))[..., 0].ravel()
    expected = np.round(np.asarray(grey16()).ravel() / 257)
    assert np.abs(values - expected).max() <= 1
    assert values[0] == 0
    assert values[-1] == 255
    assert len(np.unique(values)) == 256


def test_16_bit_colour_is_scaled() -> None:
    assert pixels(rgb16_png()).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_transparency_lies_over_white() -> None:
    clear_black = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (pixels(encode(clear_black, "PNG")) == 255).all()
    half_black = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert (np.abs(pixels(encode(half_black, "PNG")).astype(int) - 127) <= 1).all()


def test_every_transparency_of_every_value_is_composed_as_pillow_composes() -> None:
    level, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([level, level, level, alpha], 2), "RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    for ours in (np.asarray(decode(encode(image, "PNG"), LIMITS)), np.asarray(to_rgb(image))):
        np.testing.assert_array_equal(ours, expected)


def test_transparency_takes_little_memory_beside_the_decoders(tmp_path: Path) -> None:
    """The peak of a fresh process, in bytes a pixel: 4 of what was decoded, 4 of RGB."""
    Image.new("RGBA", (4000, 4000), (9, 99, 200, 120)).save(tmp_path / "a.png", compress_level=1)
    code = """if True:
        import sys
        from pathlib import Path
        from service.preprocess import ImageLimits, read

        def peak_bytes() -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

        image, before = Path(sys.argv[1]).read_bytes(), peak_bytes()
        read(image, ImageLimits(10**8, 10**8), 56)
        print((peak_bytes() - before) / 4000**2)
    """
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 7 < float(done.stdout) < 12


def test_a_transparent_palette_colour_becomes_white() -> None:
    values = pixels(encode(palette(transparent=True), "PNG", transparency=1))
    assert values[0, 0].tolist() == [255, 0, 0]
    assert values[0, -1].tolist() == [255, 255, 255]


def test_transparent_16_bit_grey_becomes_white() -> None:
    image = Image.fromarray(np.array([[0, 1000]], np.uint16))
    assert pixels(encode(image, "PNG", transparency=0))[0, :, 0].tolist() == [255, 4]


@pytest.mark.parametrize("name", ["animated png", "animated webp"])
def test_the_first_frame_of_an_animation_counts(name: str) -> None:
    red, green, blue = pixels(GOOD[name])[10, 10]
    assert red > 240
    assert green < 16
    assert blue < 16


def test_cmyk_looks_like_what_it_was() -> None:
    difference = pixels(GOOD["cmyk jpeg"]).astype(int) - np.asarray(gradient()).astype(int)
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("name", ["rgb jpeg", "rgb png", "lossy webp", "lossless webp", "rgba webp", "cmyk jpeg"])
def test_an_image_cut_at_any_length_is_refused_or_whole(name: str) -> None:
    data = GOOD[name]
    for length in range(0, len(data), max(1, len(data) // 60)):
        with suppress(BadImage, UnsupportedImageType):
            assert decode(data[:length], LIMITS).size == (40, 30)


@settings(deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_an_image_with_a_wrong_byte_is_decoded_or_refused(name: str, data: st.DataObject) -> None:
    image = bytearray(GOOD[name])
    position = data.draw(st.integers(0, len(image) - 1))
    image[position] = data.draw(st.integers(0, 255))
    with suppress(BadImage, UnsupportedImageType, TooLarge):
        assert decode(bytes(image), LIMITS).mode == "RGB"


def test_pixels_are_counted_before_decoding() -> None:
    with pytest.raises(TooLarge, match="100000000 pixels"):
        decode(bomb_png(), LIMITS)
    with pytest.raises(TooLarge):
        decode(bomb_png(60_000, 60_000), LIMITS)
    with pytest.raises(TooLarge):
        decode(encode(gradient(), "JPEG"), ImageLimits(1_000_000, max_pixels=40 * 30 - 1))
    assert decode(encode(gradient(), "JPEG"), ImageLimits(1_000_000, max_pixels=40 * 30)).size == (40, 30)


def test_bytes_are_counted_first() -> None:
    with pytest.raises(TooLarge, match="3 bytes; the limit is 2"):
        decode(b"abc", ImageLimits(2, 100))


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = gradient(28, 28)
    assert np.array_equal(resize_crop(image, 28), np.asarray(image))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (31, 30), (100, 14), (14, 99), (56, 56)])
def test_the_centre_square_is_kept(size: tuple[int, int]) -> None:
    image = gradient(*size)
    side = min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    box = (left, top, left + side, top + side)
    expected = np.asarray(image.resize((14, 14), Image.Resampling.BICUBIC, box=box))
    assert np.array_equal(resize_crop(image, 14), expected)


def test_interpolation_follows_the_manifest() -> None:
    image = gradient()
    expected = np.asarray(image.resize((14, 14), Image.Resampling.BILINEAR, box=(5, 0, 35, 30)))
    assert np.array_equal(resize_crop(image, 14, "bilinear"), expected)


@pytest.mark.parametrize("name", GOOD)
def test_read_is_decoding_and_resizing(name: str) -> None:
    expected = resize_crop(decode(GOOD[name], LIMITS), 14)
    assert np.array_equal(read(GOOD[name], LIMITS, 14), expected)  # 30 px, no JPEG to be reduced


def scene(width: int, height: int) -> Image.Image:
    """Areas, edges and noise."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    values = 60 + 120 * ((x // 37 + y // 53) % 3 == 0) + 40 * np.sin(x / 29 + y / 61)
    values = values[..., None] + np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The size of each image that is decoded from here on."""
    found, load = [], JpegImageFile.load

    def noted(self: JpegImageFile) -> Any:
        found.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImageFile, "load", noted)
    return found


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 300), (400, 300)),  # half of it would be less than three times the model's 56 px
        ((448, 336), (224, 168)),
        ((1023, 771), (256, 193)),  # not divisible: the last blocks reach over the edge
        ((1351, 1349), (169, 169)),
        ((340, 2000), (170, 1000)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_looks_the_same(
    size: tuple[int, int], expected: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(scene(*size).convert(mode), "JPEG", quality=90)
    whole = resize_crop(decode(data, LIMITS), 56).astype(int)
    sizes = decoded_sizes(monkeypatch)
    reduced = read(data, LIMITS, 56).astype(int)
    assert sizes[0] == expected
    difference = np.abs(reduced - whole)
    assert difference.mean() < 1  # level of 256
    assert difference.max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright(orientation: int) -> None:
    data = encode(scene(701, 523), "JPEG", quality=90, exif=exif(orientation))
    difference = np.abs(read(data, LIMITS, 56).astype(int) - resize_crop(decode(data, LIMITS), 56))
    assert difference.mean() < 1


def test_a_large_jpeg_that_is_cut_short_is_refused() -> None:
    data = encode(scene(800, 600), "JPEG")
    with pytest.raises(BadImage, match="truncated"):
        read(data[: len(data) // 2], LIMITS, 56)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (
            encode(gradient(8, 8), "PNG").replace(b"\r\n", b""),
            "image: a PNG whose line ends were changed; .*--data-binary",
        ),
        (b"photo.jpg", "image, but text: send the file itself, not its name, address or base64"),
        (b"data:image/png;base64,iVBORw0KGgo=", "image, but text"),
        (b"\x00\x01\x02", "image$"),
    ],
)
def test_what_went_wrong_on_the_way_is_guessed(data: bytes, hint: str) -> None:
    with pytest.raises(UnsupportedImageType, match=hint):
        decode(data, LIMITS)
