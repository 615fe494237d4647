"""A request's body, as a whole or as the images in it, with every limit enforced while it streams in.

Images are raw bytes or multipart parts. It hands on bytes as they came; what they are is decided by `preprocess.py`, by
sniffing: `curl --data-binary` calls a PNG a form, and phones call a WebP a JPEG.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import BadParameter, BadRequest, Overloaded, TooLarge, UnsupportedImageType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
MULTIPART = "multipart/form-data"
# Said by clients that don't know what they send; the bytes decide.
_UNKNOWING_TYPES = (
    *("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"),
    *("image/*", "image/jpg", "image/pjpeg", "image/x-png"),
)
_PART = "image"
_BODIES = 8  # of full length, that may be held at once
_FREE_BYTES = 256 * 1024  # of each body, that don't count towards what all may hold: a small image always has room
_INFLATED_AT_ONCE = 256 * 1024  # bytes, about a millisecond's work, before others get their turn


class BodyBudget:
    """Memory for the bodies of all requests together, from their first bytes to their answers.

    Each has a limit, and connections have one; their product is more memory than there is.
    """

    def __init__(self, max_request_bytes: int) -> None:
        """`max_request_bytes`: of one body."""
        self._max_bytes = _BODIES * max_request_bytes
        self.held_bytes = 0

    def share(self) -> BodyShare:
        """A request's, empty as yet."""
        return BodyShare(self)

    def take(self, size_bytes: int) -> None:
        """Hold more; Overloaded if there is no room."""
        if self.held_bytes + size_bytes > self._max_bytes:
            raise Overloaded(f"requests of {self.held_bytes >> 20} MiB are being received already", retry_after_s=1.0)
        self.held_bytes += size_bytes


class BodyShare:
    """What one request holds of a budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._free_bytes, self._held_bytes = _FREE_BYTES, 0

    def grow(self, size_bytes: int) -> None:
        """Hold more; Overloaded if there is no room."""
        free = min(self._free_bytes, size_bytes)
        self._budget.take(size_bytes - free)
        self._free_bytes -= free
        self._held_bytes += size_bytes - free

    def release(self) -> None:
        """Hold nothing any more."""
        self._budget.held_bytes -= self._held_bytes
        self._held_bytes = 0


class BodyLimits(NamedTuple):
    """What one body may hold, and all together."""

    max_image_bytes: int
    max_request_bytes: int
    max_images: int
    budget: BodyBudget


async def read_images(request: Request, limits: BodyLimits) -> list[bytes]:
    """The encoded images of a request, at least one, in their order.

    Raises:
        UnsupportedImageType: the content type is neither an image type we take nor multipart.
        TooLarge: more bytes or images than the limits.
        Overloaded: the bodies of other requests leave no room.
        BadRequest: malformed multipart, or no image in it.
        BadParameter: a part with another name than `image`.
        ClientDisconnect: the client left before the body was complete.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedImageType(f"content-encoding: {encoding} isn't taken; images are compressed already")
    raw_type, options = parse_options_header(request.headers.get("content-type"))
    content_type = raw_type.decode("latin-1").lower()
    if content_type == MULTIPART:
        parts = _Parts(limits)
        parser = _parser(options.get(b"boundary"), parts)
        await _stream(request, limits.max_request_bytes, limits.budget, parser)
        return parts.finish()
    if content_type not in (*IMAGE_TYPES, *_UNKNOWING_TYPES):
        raise UnsupportedImageType(
            f"content-type: {content_type!r} isn't one of {', '.join((*IMAGE_TYPES, MULTIPART))}"
        )
    body = bytearray()
    await _stream(request, limits.max_image_bytes, limits.budget, body.extend)
    return [bytes(body)]


async def read_body(request: Request, max_bytes: int, budget: BodyBudget) -> bytes:
    """The whole body of a request, inflated if it's compressed with gzip or deflate.

    Raises:
        TooLarge: more than `max_bytes`, compressed or inflated.
        Overloaded: the bodies of other requests leave no room.
        BadRequest: another content encoding, or compressed data that are broken or cut short.
        ClientDisconnect: the client left before the body was complete.
    """
    body = bytearray()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        await _stream(request, max_bytes, budget, body.extend)
        return bytes(body)
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"content-encoding: {encoding[:40]!r} isn't taken, only gzip and deflate")
    share = await _stream(request, max_bytes, budget, body.extend)
    inflated = bytearray()
    async for piece in _inflate(body, encoding):
        share.grow(len(piece))
        inflated.extend(piece)
        if len(inflated) > max_bytes:
            raise TooLarge(f"the body inflates to more than {max_bytes} bytes, the limit")
    return bytes(inflated)


async def _inflate(body: bytearray, encoding: str) -> AsyncIterator[bytes]:
    """The body's content in pieces, between which others get their turn: few bytes may be much work."""
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # tells gzip's header from zlib's by itself
    for start in range(0, len(body), _INFLATED_AT_ONCE):
        rest: bytes | memoryview = memoryview(body)[start : start + _INFLATED_AT_ONCE]
        while rest:
            try:
                yield inflater.decompress(rest, _INFLATED_AT_ONCE)
            except zlib.error:
                raise BadRequest(f"the body isn't {encoding} data, as content-encoding says") from None
            if inflater.unused_data:
                raise BadRequest(f"bytes follow the end of the body's {encoding} data")
            rest = inflater.unconsumed_tail
            await asyncio.sleep(0)
    if not inflater.eof:
        raise BadRequest(f"the body's {encoding} data are cut short")


async def _stream(request: Request, max_bytes: int, budget: BodyBudget, feed: Callable[[bytes], None]) -> BodyShare:
    """Pass the body on in chunks; TooLarge as soon as it's known to exceed the limit.

    Returns what the request holds of the budget, until it ends.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise TooLarge(f"the body has {declared} bytes; the limit is {max_bytes}")
    share = budget.share()
    request.state.held.callback(share.release)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise TooLarge(f"the body has more than {max_bytes} bytes, the limit")
        share.grow(len(chunk))
        feed(chunk)
    return share


def _parser(boundary: bytes | None, parts: _Parts) -> Callable[[bytes], None]:
    """What takes a multipart body in chunks and collects it in `parts`.

    Which doesn't know it: in a ring of both the bytes would stay until Python looks for rings, hundreds of requests
    later.
    """
    if not boundary:
        raise BadRequest("content-type: multipart/form-data has no boundary")
    try:
        parser = MultipartParser(boundary, parts.callbacks())
    except FormParserError as error:
        raise BadRequest(f"malformed multipart body: {error}") from error

    def feed(chunk: bytes) -> None:
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise BadRequest(f"malformed multipart body: {error}") from error

    return feed


class _Parts:
    """Collects the parts of a multipart body in memory; the body's own limit bounds it."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._images: list[bytearray] = []
        self._ended = False
        self._header = [bytearray(), bytearray()]  # name and value of the header being read
        self._disposition = b""

    def callbacks(self) -> MultipartCallbacks:
        """What a parser calls."""
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_end": self._on_end,
        }

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
            raise BadParameter(
                f"unknown part {name[:100]!r} in the multipart body; parts are named {_PART!r}, parameters go into the "
                "address: ?threshold=0.25"
            )
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
