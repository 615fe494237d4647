"""An encoded image becomes the graph's uint8 input. Every limit is checked on the header, before pixels are decoded.

`resize_crop` is the one definition of geometry: training evaluation has the same formula and a test holds the two equal
to the pixel; large JPEGs alone are decoded at a reduced scale, about a level of 256 apart. Decoding turns what the
world uploads into RGB: EXIF orientation is applied, the first frame of an animation taken, 16 bits scaled to 8, CMYK
and palettes converted, transparency laid over white (on which logos and screenshots are drawn). Colour profiles are
ignored, as training data loaders do. It knows no HTTP and no model.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import BadImage, TooLarge, UnsupportedImageType
from service.image_header import Kind, excess, image_kind, image_size

# Named, because `Image.open` would load and try decoders of other formats, old and seldom looked at.
_DECODERS: dict[Kind, type[ImageFile]] = {"JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile}
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_GAP = 3  # a reduced image's sides over the model's: from 3 on one can't tell (Pillow on its `reducing_gap`)
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Interpolation = Literal["bicubic", "bilinear"]


class ImageLimits(NamedTuple):
    """What one image may cost."""

    max_bytes: int
    max_pixels: int


def read(data: bytes, limits: ImageLimits, size_px: int, interpolation: Interpolation = "bicubic") -> NDArray[np.uint8]:
    """One encoded image as the graph wants it, (size_px, size_px, 3) uint8: `resize_crop` of `decode`.

    A JPEG much larger than that is decoded at 1/2, 1/4 or 1/8 of its size: libjpeg leaves out frequencies that resizing
    would take away. Raises what `decode` raises.
    """
    kind = _check(data, limits)
    with _blaming(kind):
        image = _open(data, kind, limits)
        w, h = image.size
        scale = _reduce(image, size_px)
        image.load()
        rgb, orientation = _rgb(image), _orientation(image)
        if scale == 1:
            return resize_crop(_upright(rgb, orientation), size_px, interpolation)
        # Blocks at the right and lower edge may reach over the picture: the extent leaves that out.
        square = resize_crop(rgb, size_px, interpolation, extent=(w / scale, h / scale))
        return np.asarray(_upright(Image.fromarray(square), orientation))


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode one JPEG, PNG or WebP fully and return it as an upright RGB image.

    Raises:
        UnsupportedImageType: the bytes are of no type we take.
        TooLarge: more bytes or pixels than the limits; known from the header, nothing was decoded.
        BadImage: empty, truncated or corrupt.
    """
    kind = _check(data, limits)
    with _blaming(kind):
        image = _open(data, kind, limits)
        image.load()
        return _upright(_rgb(image), _orientation(image))


def resize_crop(
    image: Image.Image,
    size_px: int,
    interpolation: Interpolation = "bicubic",
    *,
    extent: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """The largest centred square of an RGB image, resized to `size_px`; returns (size_px, size_px, 3) uint8.

    One resize with a source box, so that a 1 x 10000 image costs no more than a square one. `extent`: width and height
    of the picture in it, from the upper left, if not all of it.
    """
    w, h = extent or image.size
    side = min(w, h)
    box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
    square = image.resize((size_px, size_px), _RESAMPLING[interpolation], box=box)
    return np.frombuffer(square.tobytes(), np.uint8).reshape(size_px, size_px, 3)


def _check(data: bytes, limits: ImageLimits) -> Kind:
    """What kind of image it is, by its first bytes; raises what `decode` does."""
    if not data:
        raise BadImage("the image is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise TooLarge(f"the image has {len(data)} bytes; the limit is {limits.max_bytes}")
    kind = image_kind(data)
    if kind is None:
        raise UnsupportedImageType("the bytes are no JPEG, PNG or WebP image" + _hint(data))
    too_much = excess(data, kind)
    if too_much is not None:
        raise TooLarge(f"the {kind} image has {too_much}, the limit; save it anew")
    size = image_size(data, kind)
    if size is None:
        raise BadImage(f"the {kind} image's header is cut short or corrupt")
    _check_pixels(size, limits)
    return kind


def _hint(data: bytes) -> str:
    """What may have gone wrong on the way, for bytes that are nearly an image or text."""
    if data.startswith(b"\x89PNG"):
        return ": a PNG whose line ends were changed; send it as it is (curl: --data-binary, not -d)"
    if data[:256].isascii() and data[:256].decode().isprintable():
        return ", but text: send the file itself, not its name, address or base64 (curl: -F image=@photo.jpg)"
    return ""


@contextmanager
def _blaming(kind: Kind) -> Iterator[None]:
    """Decoders raise a dozen unrelated types on hostile bytes; whichever it is, the image is at fault."""
    try:
        yield
    except TooLarge:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image is too large: {error}") from error
    except Exception as error:
        raise BadImage(f"the {kind} image can't be decoded (truncated or corrupt): {_first_line(error)}") from error


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    w, h = size
    if w < 1 or h < 1:
        raise BadImage(f"the image is {w} x {h} pixels")
    if w * h > limits.max_pixels:
        raise TooLarge(f"the image is {w} x {h} = {w * h} pixels; the limit is {limits.max_pixels}")


def _open(data: bytes, kind: Kind, limits: ImageLimits) -> ImageFile:
    image = _DECODERS[kind](io.BytesIO(data))
    _check_pixels(image.size, limits)  # if the decoder reads the header in another way than we do, it counts
    return image


def _reduce(image: ImageFile, size_px: int) -> int:
    """Make a JPEG decode at a fraction of its size, if that is still large enough; returns its denominator."""
    w, h = image.size
    for scale in (8, 4, 2):
        if min(w, h) >= scale * _GAP * size_px and image.draft(None, (w // scale, h // scale)) is not None:
            return scale
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return _rgb_from_grey16(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)  # as `alpha_composite`, to the bit, in a third of the memory
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _rgb_from_grey16(image: Image.Image) -> Image.Image:
    values = np.asarray(image).clip(0, 65535).astype(np.int32, copy=False)
    wide = values + 128
    wide //= 257  # 65535 -> 255, rounded
    grey = wide.astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken metadata are common and no reason to refuse good pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
