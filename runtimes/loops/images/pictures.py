"""A picture however it is given, to RGB of 8 bits as it is meant to be seen.

`load` takes a path, bytes, an open file, an array or a Pillow image and does the same for each: the
size is bounded before any pixel is read, EXIF's orientation is applied, transparency is laid over
white, and every failure of a decoder is an error of one line. A file is untrusted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevlm.errors import InputError
from edgevlm.libraries import first_line, muted, require
from edgevlm.runtimes.loops.images.eight_bit import from_array, rgb
from edgevlm.runtimes.loops.images.metered import Metered
from edgevlm.runtimes.loops.images.room import (
    DECODER_BYTES,
    HEIC_BYTES,
    TOO_LARGE,
    Room,
    check_size,
    reread_bytes,
)
from edgevlm.runtimes.loops.images.sources import (
    Source,
    format_of,
    is_heic,
    is_source,
    name_of,
    opened,
)

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
GREY_STEPS = {"L;2": 85, "L;4": 17}  # between two greys of 2 and 4 bits, of 256
TALKATIVE = ("TIFF", "JPEG2000", "AVIF")  # their libraries write to standard error themselves
EXIF_ORIENTATION = 0x0112

Picture = Source | Image.Image | Any  # Any: an array, or what numpy makes one of


def is_picture(value: Any) -> bool:
    """Whether a value is given as a picture is: a source, or what says that it is an array."""
    array = any(hasattr(value, name) for name in ("__array__", "__array_interface__"))
    return array or is_source(value)


def load(picture: Picture, room: Room = Room()) -> Image.Image:
    """A picture as 8-bit RGB, upright; one that is that already is not copied.

    Args:
        picture: A path, bytes, an open file, an array or a Pillow image.
        room: Memory that it may take. A JPEG that would take more is decoded at a half, a quarter
            or an eighth of its size, as far as that is no less than what it is resized to.

    Raises:
        InputError: If it is missing, not an image, damaged, empty or too large.
    """
    if isinstance(picture, Image.Image):
        name = "the Pillow image"
        with _one_line(name):
            check_size(picture.size, name)
            if picture.mode != "RGB" or getattr(picture, "tile", None):  # not read yet, maybe
                room.claim(2 * reread_bytes(picture), name)
            return _upright(picture, name, room)
    if not is_source(picture):
        with _one_line("the array"):
            if isinstance(picture, np.ndarray):
                each = 6 if picture.dtype == np.uint8 else 14  # bytes of its copies
                room.claim(each * picture.size, "the array")
            return _upright(from_array(picture, "the array"), "the array", room)
    name = name_of(picture, "image")
    with opened(picture, "image") as file, _one_line(name), _decoder(file, name, room) as found:
        return _upright(found, name, room)


def _upright(picture: Image.Image, name: str, room: Room) -> Image.Image:
    check_size(picture.size, name)
    with muted() if picture.format in TALKATIVE else nullcontext():
        picture.load()
    if picture.format in DECODER_BYTES:  # a copy is smaller than what its decoder keeps
        picture = picture.copy()
    if _turn(picture) != 1:
        room.claim(reread_bytes(picture), name)
        picture = ImageOps.exif_transpose(picture)
    return rgb(picture, name)


def _turn(picture: Image.Image) -> int:
    """EXIF's orientation; from 5 on width and height change places. 1 where EXIF is damaged."""
    try:
        turn = picture.getexif().get(EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # its parser raises what it likes; the picture beside it is whole
        return 1
    return turn if isinstance(turn, int) else 1


@contextmanager
def _decoder(file: BinaryIO, name: str, room: Room) -> Iterator[Image.Image]:
    """The picture of a file, its pixels not read yet, and room for them."""
    if is_heic(file):
        yield _heic(file, name, room)
        return
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]  # AVIF only from Pillow 11.3
    try:
        metered: Any = Metered(file, room, name) if room.bounded else file
        picture = Image.open(metered, formats=formats)
    except UnidentifiedImageError as cause:
        meaning = format_of(file) or "is not an image that can be read"
        end = "" if "; " in meaning or meaning == "is empty" else f"; {readable()}"
        raise InputError(f"{name} {meaning}{end}") from cause
    with picture:
        check_size(picture.size, name)
        position = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(position)
        # Where EXIF comes after the pixels, asking for it would read them all.
        early = picture.format in ("JPEG", "MPO") or "exif" in picture.info
        turn = _turn(picture) if early and picture.format not in DECODER_BYTES else 1
        room.decode(picture, size, turn, name)
        _spread_transparency(picture)
        yield picture


def _spread_transparency(picture: Any) -> None:
    """Bring the transparent colour of a PNG of 2, 4 or 16 bits to the 8 bits of its pixels.

    Pillow brings the pixels there alone. Of 16 bits a colour, the upper ones are compared.
    """
    clear, depth = picture.info.get("transparency"), picture.tile[0][3] if picture.tile else None
    if picture.format == "PNG" and depth in GREY_STEPS and isinstance(clear, int):
        picture.info["transparency"] = clear * GREY_STEPS[depth]
    if picture.format == "PNG" and depth == "RGB;16B" and isinstance(clear, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in clear)


def readable() -> str:
    """The formats that are read, as the end of an error."""
    return f"expected {', '.join(FORMATS[:-1])}, {FORMATS[-1]}, or HEIC with 'edgevlm[heic]'"


def _heic(file: BinaryIO, name: str, room: Room) -> Image.Image:
    """HEIC by libheif, which applies the file's own rotation."""
    heif = require(f"{name} is HEIC, and reading it", "pillow-heif", "pillow_heif", "heic",
                   InputError)  # fmt: skip
    room.claim(file.seek(0, os.SEEK_END), name, "takes at least")  # it is read whole
    file.seek(0)
    found = heif.open_heif(file)
    check_size(found.size, name)
    room.claim(HEIC_BYTES * found.size[0] * found.size[1], name)
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
        raise InputError(f"{name} has too many pixels; {TOO_LARGE}") from cause
    except Exception as cause:  # decoders raise anything from OSError to struct.error
        raise InputError(f"{name} cannot be read as an image: {first_line(cause)}") from cause
