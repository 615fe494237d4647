"""Type, size and make-up of an encoded image from its bytes, without a decoder. Pure.

Some decoders allocate the canvas when they open a file, and Pillow's own limit is one global for the process; reading
the header here lets each limit be checked first and without side effects. Decoders also spend time for each piece of a
file, however small: a few hundred kilobytes of empty scans take a JPEG's decoder a quarter of a minute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["JPEG", "PNG", "WEBP"]

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: C4 (Huffman tables), C8 (reserved) and CC (arithmetic coding) are none.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_LONG = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}) - {0xC8}  # markers led by a length
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
_JPEG_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # and not one that restarts the scan

# More pieces than any honest file has: progressive JPEGs have some ten scans, PNGs a chunk for each 4 KB and more. A
# scan may be empty and still costs a look at every block of the picture: a second for so many pixels, in all scans.
MAX_JPEG_SCANS = 100
MAX_JPEG_SCANNED_PIXELS = 1_000_000_000
MAX_JPEG_SEGMENTS = 1000
MAX_JPEG_STRAY_BYTES = 64 * 1024
MAX_PNG_CHUNKS = 10_000


def image_kind(data: bytes) -> Kind | None:
    """What the bytes claim to be, by their magic number; None if no type we take."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def image_size(data: bytes, kind: Kind) -> tuple[int, int] | None:
    """Width and height in pixels as the header says; None if the header is cut short or makes no sense."""
    if kind == "PNG":
        return _png_size(data)
    if kind == "WEBP":
        return _webp_size(data)
    return _jpeg_size(data)


def excess(data: bytes, kind: Kind) -> str | None:
    """What the image has more of than a decoder should be made to go through, with the limit; None if nothing."""
    if kind == "PNG":
        return _png_excess(data)
    return _jpeg_excess(data) if kind == "JPEG" else None


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":  # extended: canvas size, 24 bits each, less one
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8 ":  # lossy: 14 bits each
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if chunk == b"VP8L":  # lossless: 14 bits each, less one, after a signature byte
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _png_excess(data: bytes) -> str | None:
    at, chunks = 8, 0
    while at < len(data):
        chunks += 1
        if chunks > MAX_PNG_CHUNKS:
            return f"more than {MAX_PNG_CHUNKS} chunks"
        at += 12 + int.from_bytes(data[at : at + 4], "big")  # length, type and checksum beside the content
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    for marker, at, _ in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            return _frame_size(data, at)
        if marker in (_JPEG_END, _JPEG_SCAN):  # before any frame
            return None
    return None


def _jpeg_excess(data: bytes) -> str | None:
    scans = stray_bytes = pixels = 0
    for segments, (marker, at, before) in enumerate(_jpeg_segments(data), start=1):
        if scans == 0:  # between segments; behind the first come pixels
            stray_bytes += before
        scans += marker == _JPEG_SCAN
        if marker in _JPEG_FRAMES:
            pixels = max(pixels, math.prod(_frame_size(data, at) or (0,)))
        if segments > MAX_JPEG_SEGMENTS:
            return f"more than {MAX_JPEG_SEGMENTS} segments"
        if scans > MAX_JPEG_SCANS:
            return f"more than {MAX_JPEG_SCANS} scans"
        if scans * pixels > MAX_JPEG_SCANNED_PIXELS:
            return f"more than {MAX_JPEG_SCANNED_PIXELS} pixels in all its scans"
        if stray_bytes > MAX_JPEG_STRAY_BYTES:
            return f"more than {MAX_JPEG_STRAY_BYTES} bytes between segments"
        if marker == _JPEG_END and scans:
            return None
    return None


def _frame_size(data: bytes, at: int) -> tuple[int, int] | None:
    height, width = data[at + 3 : at + 5], data[at + 5 : at + 7]
    return (int.from_bytes(width, "big"), int.from_bytes(height, "big")) if len(width) == 2 else None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, where its length lies, and the bytes that lead to it and belong to none.

    Decoders skip stray bytes between segments, so do we.
    """
    at, pattern = 2, _JPEG_MARKER
    while found := pattern.search(data, at):
        marker = data[found.end() - 1]
        yield marker, found.end(), found.start() - at
        at = found.end()
        if marker in _JPEG_LONG:
            at += int.from_bytes(data[at : at + 2], "big")
        if marker == _JPEG_SCAN:
            pattern = _JPEG_MARKER_IN_SCAN
