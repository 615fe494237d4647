"""A request's body, as a whole or as the images in it, with every limit enforced while it streams in.

Images are raw bytes or multipart parts. It hands on bytes as they came; what they are is decided by `preprocess.py`, by
sniffing: `curl --data-binary` calls a PNG a form, and phones call a WebP a JPEG.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import BadParameter, BadRequest, TooLarge, UnsupportedImageType

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
MULTIPART = "multipart/form-data"
# Said by clients that don't know what they send; the bytes decide.
_UNKNOWING_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded", "image/jpg", "image/*")
_PART = "image"


class BodyLimits(NamedTuple):
    """What one body may hold."""

    max_image_bytes: int
    max_request_bytes: int
    max_images: int


async def read_images(request: Request, limits: BodyLimits) -> list[bytes]:
    """The encoded images of a request, at least one, in their order.

    Raises:
        UnsupportedImageType: the content type is neither an image type we take nor multipart.
        TooLarge: more bytes or images than the limits.
        BadRequest: malformed multipart, or no image in it.
        BadParameter: a part with another name than `image`.
        ClientDisconnect: the client left before the body was complete.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedImageType(f"content-encoding: {encoding} isn't taken; images are compressed already")
    raw_type, options = parse_options_header(request.headers.get("content-type"))
    content_type = raw_type.decode("latin-1").lower()
    if content_type == MULTIPART:
        parts = _Parts(options.get(b"boundary"), limits)
        await _stream(request, limits.max_request_bytes, parts.feed)
        return parts.finish()
    if content_type not in (*IMAGE_TYPES, *_UNKNOWING_TYPES):
        raise UnsupportedImageType(
            f"content-type: {content_type!r} isn't one of {', '.join((*IMAGE_TYPES, MULTIPART))}"
        )
    body = bytearray()
    await _stream(request, limits.max_image_bytes, body.extend)
    return [bytes(body)]


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body of a request, inflated if it's compressed with gzip or deflate.

    Raises:
        TooLarge: more than `max_bytes`, compressed or inflated.
        BadRequest: another content encoding, or compressed data that are broken or cut short.
        ClientDisconnect: the client left before the body was complete.
    """
    body = bytearray()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        await _stream(request, max_bytes, body.extend)
        return bytes(body)
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"content-encoding: {encoding[:40]!r} isn't taken, only gzip and deflate")
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # tells gzip's header from zlib's by itself

    def inflate(chunk: bytes) -> None:
        try:
            body.extend(inflater.decompress(chunk, max_bytes + 1 - len(body)))
        except zlib.error:
            raise BadRequest(f"the body isn't {encoding} data, as content-encoding says") from None
        if len(body) > max_bytes:
            raise TooLarge(f"the body inflates to more than {max_bytes} bytes, the limit")
        if inflater.unused_data:
            raise BadRequest(f"bytes follow the end of the body's {encoding} data")

    await _stream(request, max_bytes, inflate)
    if not inflater.eof:
        raise BadRequest(f"the body's {encoding} data are cut short")
    return bytes(body)


async def _stream(request: Request, max_bytes: int, feed: Callable[[bytes], None]) -> None:
    """Pass the body on in chunks; TooLarge as soon as it's known to exceed the limit."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise TooLarge(f"the body has {declared} bytes; the limit is {max_bytes}")
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise TooLarge(f"the body has more than {max_bytes} bytes, the limit")
        feed(chunk)


class _Parts:
    """Collects the parts of a multipart body in memory; the body's own limit bounds it."""

    def __init__(self, boundary: bytes | None, limits: BodyLimits) -> None:
        if not boundary:
            raise BadRequest("content-type: multipart/form-data has no boundary")
        self._limits = limits
        self._images: list[bytearray] = []
        self._ended = False
        self._header = [bytearray(), bytearray()]  # name and value of the header being read
        self._disposition = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise BadRequest(f"malformed multipart body: {error}") from error

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest(f"malformed multipart body: {error}") from error

    def finish(self) -> list[bytes]:
        """The images, once the body is complete."""
        if not self._ended:
            raise BadRequest("malformed multipart body: it ends before its closing boundary")
        if not self._images:
            raise BadRequest(f"the multipart body has no part named {_PART!r}")
        return [bytes(image) for image in self._images]

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _on_headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        if name != _PART:
            raise BadParameter(f"unknown part {name[:100]!r} in the multipart body; parts are named {_PART!r}")
        if len(self._images) == self._limits.max_images:
            raise TooLarge(f"more than {self._limits.max_images} images in one request, the limit")
        self._images.append(bytearray())

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        image = self._images[-1]
        if len(image) + end - start > self._limits.max_image_bytes:
            raise TooLarge(f"an image has more than {self._limits.max_image_bytes} bytes, the limit")
        image.extend(data[start:end])

    def _on_end(self) -> None:
        self._ended = True
