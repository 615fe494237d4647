"""Tiny images of every kind that the service meets, good and bad, made in memory."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of this kind."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """An RGB image in which every pixel differs from its neighbours."""
    x = np.linspace(0, 255, width)[None, :]
    y = np.linspace(0, 255, height)[:, None]
    channels = np.broadcast_arrays(x, y, (x + y) / 2)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def plain(value: int = 7, size_px: int = 28) -> bytes:
    """A PNG of one grey value, which `FakeEngine` reads as its number."""
    return encode(Image.new("RGB", (size_px, size_px), (value, value, value)), "PNG")


def grey16() -> Image.Image:
    """A 16-bit grey ramp over the whole range."""
    return Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))


def palette(transparent: bool = False) -> Image.Image:
    """A palette image, left half red, right half blue; blue transparent if asked."""
    image = Image.new("P", (40, 30), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (20, 0, 40, 30))
    if transparent:
        image.info["transparency"] = 1
    return image


def exif(orientation: int) -> bytes:
    """An EXIF block with this orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def broken_exif_jpeg() -> bytes:
    """Good pixels beside metadata that can't be read."""
    return encode(gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")


def rgb16_png() -> bytes:
    """A 2 x 1 PNG with 16 bits a channel, black and white, which Pillow reads but can't write."""
    row = b"\x00" + struct.pack(">6H", 0, 0, 0, 65535, 65535, 65535)
    return _png(2, 1, 16, 2, zlib.compress(row))


def bomb_png(width: int = 10_000, height: int = 10_000) -> bytes:
    """A header that promises 100 megapixels, in about a hundred bytes."""
    return _png(width, height, 8, 2, zlib.compress(b"\x00" * 64))


def _png(width: int, height: int, depth: int, colour: int, data: bytes, interlace: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def good_images() -> dict[str, bytes]:
    """Files that must be classified, by what is special about them."""
    image = gradient()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return {
        "rgb jpeg": encode(image, "JPEG"),
        "progressive jpeg": encode(image, "JPEG", progressive=True),
        "grey jpeg": encode(image.convert("L"), "JPEG"),
        "cmyk jpeg": encode(image.convert("CMYK"), "JPEG"),
        "rotated jpeg": encode(image, "JPEG", exif=exif(6)),
        "rgb png": encode(image, "PNG"),
        "rgba png": encode(image.convert("RGBA"), "PNG"),
        "grey alpha png": encode(image.convert("LA"), "PNG"),
        "1-bit png": encode(image.convert("1"), "PNG"),
        "palette png": encode(palette(), "PNG"),
        "palette transparent png": encode(palette(transparent=True), "PNG", transparency=1),
        "grey transparent png": encode(image.convert("L"), "PNG", transparency=0),
        "16-bit grey png": encode(grey16(), "PNG"),
        "16-bit rgb png": rgb16_png(),
        "interlaced png": interlaced_png(),
        "animated png": encode(frames[0], "PNG", **animated),
        "lossy webp": encode(image, "WEBP"),
        "lossless webp": encode(image, "WEBP", lossless=True),
        "rgba webp": encode(image.convert("RGBA"), "WEBP"),
        "animated webp": encode(frames[0], "WEBP", **animated),
        "1 px png": encode(Image.new("RGB", (1, 1)), "PNG"),
        "1 x 10000 png": encode(Image.new("RGB", (1, 10_000)), "PNG"),
    }


def bad_images() -> dict[str, tuple[bytes, int]]:
    """Files that must be refused, by what is wrong with them, and the status they get."""
    png, jpeg, webp = (encode(gradient(), kind) for kind in ("PNG", "JPEG", "WEBP"))
    return {
        "nothing": (b"", 422),
        "one byte": (b"\xff", 415),
        "text": (b"this is no image", 415),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        "html": (b"<!doctype html><title>x</title>", 415),
        "pdf": (b"%PDF-1.7\n", 415),
        "gif": (encode(gradient(), "GIF"), 415),
        "bmp": (encode(gradient(), "BMP"), 415),
        "tiff": (encode(gradient(), "TIFF"), 415),
        "half a png": (png[: len(png) // 2], 422),
        "half a jpeg": (jpeg[: len(jpeg) // 2], 422),
        "half a webp": (webp[: len(webp) // 2], 422),
        "png magic only": (png[:8], 422),
        "jpeg magic and noise": (b"\xff\xd8\xff" + bytes(range(256)), 422),
        "riff that is no webp": (b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(64), 415),
        "12-bit jpeg": (twelve_bit_jpeg(), 422),
        "100 megapixel png": (bomb_png(), 413),
        "no pixels png": (bomb_png(0, 10), 422),
    }


def interlaced_png(size_px: int = 28, value: int = 7) -> bytes:
    """An Adam7 PNG of one grey value, which Pillow reads but can't write."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = bytearray()
    for left, top, step_x, step_y in passes:
        width = len(range(left, size_px, step_x))
        for _ in range(top, size_px, step_y):
            rows += b"\x00" + bytes([value] * 3 * width)
    return _png(size_px, size_px, 8, 2, zlib.compress(bytes(rows)), interlace=1)


def stuffed_png(chunk: bytes, megabytes: int) -> bytes:
    """A good PNG with a chunk in front of its pixels that inflates to this much from a thousandth of it."""
    good = plain()
    zeros = zlib.compress(bytes(megabytes << 20), 9)
    body = {b"zTXt": b"note\x00\x00" + zeros, b"iCCP": b"profile\x00\x00" + zeros, b"IDAT": zeros}[chunk]
    stuffing = struct.pack(">I", len(body)) + chunk + body + struct.pack(">I", zlib.crc32(chunk + body))
    return good[:33] + stuffing + good[33:]


def huge(kind: str) -> bytes:
    """A small file of this kind whose header promises more than 200 megapixels."""
    if kind == "PNG":
        return bomb_png(20_000, 20_000)
    data = bytearray(encode(gradient(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "WEBP":
        data[21:25] = b"\xff" * 3 + bytes([data[24] | 0x0F])  # 14 bits each for width and height, less one
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


def twelve_bit_jpeg() -> bytes:
    """A JPEG that says it has 12 bits a sample, which no browser and no decoder here reads."""
    data = bytearray(encode(gradient(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def two_pictures_jpeg() -> bytes:
    """A red picture with a blue one behind it, as 3D cameras and phones write them."""
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    return encode(red, "MPO", save_all=True, append_images=[blue])
