"""A picture however it is given, to RGB of 8 bits as it is meant to be seen.

`load` takes a path, bytes, an open file, an array or a Pillow image and does the same for each: the
size is bounded before any pixel is read, EXIF's orientation is applied, transparency is laid over
white, and every failure of a decoder is an error of one line. A file is untrusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from edgevlm.errors import InputError
from edgevlm.libraries import first_line, require
from edgevlm.runtimes.loops.images.eight_bit import from_array, rgb
from edgevlm.runtimes.loops.images.sources import (
    Source,
    format_of,
    is_heic,
    is_source,
    name_of,
    opened,
)

# 50 million pixels are 200 MB in Pillow: more than phone cameras, less than a bomb.
PIXEL_LIMIT = 50_000_000
# The longest side of a JPEG. A resize keeps coefficients by source pixel, so that a line of
# 50 million pixels would cost gigabytes.
SIDE_LIMIT = 65_535
# Pillow's other formats run programs (EPS) or are not photographs. TGA has no magic number, so it
# is tried last.
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "JPEG2000",
    "AVIF",
    "PPM",
    "ICO",
    "TGA",
)
EXIF_ORIENTATION = 0x0112

_TOO_LARGE = (
    f"expected at most {PIXEL_LIMIT // 10**6} million and {SIDE_LIMIT} a side; make it smaller"
)

Picture = Source | Image.Image | Any  # Any: an array, or what numpy makes one of


def load(picture: Picture) -> Image.Image:
    """A picture as 8-bit RGB, upright; one that is that already is not copied.

    Raises:
        InputError: If it is missing, not an image, damaged, empty or too large.
    """
    if isinstance(picture, Image.Image):
        with _one_line("the Pillow image"):
            return _upright(picture, "the Pillow image")
    if not is_source(picture):
        with _one_line("the array"):
            return _upright(from_array(picture, "the array"), "the array")
    name = name_of(picture, "image")
    with opened(picture, "image") as file, _one_line(name), _decoder(file, name) as found:
        return _upright(found, name)


def check_size(size: tuple[int, int], name: str, what: str = "has") -> None:
    """Refuse a picture or a frame [width, height] that is empty or too large.

    Raises:
        InputError: With its size.
    """
    width, height = size
    if not width or not height:
        raise InputError(f"{name} {what} {width}x{height} pixels, expected at least one")
    if width * height > PIXEL_LIMIT or max(size) > SIDE_LIMIT:
        raise InputError(f"{name} {what} {width}x{height} pixels; {_TOO_LARGE}")


def _upright(picture: Image.Image, name: str) -> Image.Image:
    check_size(picture.size, name)
    picture.load()
    if picture.getexif().get(EXIF_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    return rgb(picture, name)


@contextmanager
def _decoder(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """The picture of a file, its pixels not read yet."""
    if is_heic(file):
        yield _heic(file, name)
        return
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]  # AVIF only from Pillow 11.3
    try:
        picture = Image.open(file, formats=formats)
    except UnidentifiedImageError as cause:
        meaning = format_of(file) or "is not an image that can be read"
        end = "" if "; " in meaning or meaning == "is empty" else f"; {readable()}"
        raise InputError(f"{name} {meaning}{end}") from cause
    with picture:
        yield picture


def readable() -> str:
    """The formats that are read, as the end of an error."""
    return f"expected {', '.join(FORMATS[:-1])}, {FORMATS[-1]}, or HEIC with 'edgevlm[heic]'"


def _heic(file: BinaryIO, name: str) -> Image.Image:
    """HEIC by libheif, which applies the file's own rotation."""
    heif = require(f"{name} is HEIC, and reading it", "pillow-heif", "pillow_heif", "heic",
                   InputError)  # fmt: skip
    found = heif.open_heif(file)
    check_size(found.size, name)
    picture: Image.Image = found.to_pillow()
    return picture


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn every failure of a decoder into one line, and keep its warnings to itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as cause:
        raise InputError(f"{name} has too many pixels; {_TOO_LARGE}") from cause
    except Exception as cause:  # decoders raise anything from OSError to struct.error
        raise InputError(f"{name} cannot be read as an image: {first_line(cause)}") from cause
