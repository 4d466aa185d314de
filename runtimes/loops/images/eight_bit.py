"""Pixels of any type and number of channels to 8-bit RGB.

One rule for arrays, files and Pillow images. Whole numbers up to 255 stay; with larger ones up to
65,535 they are 16 bit, and the upper eight bits stay, where Pillow would clip values at 255.
Fractions up to 1 are times 255, larger ones up to 255 stay. Transparency is laid over white, as
the models' own processors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.images.room import check_size

Numbers = NDArray[Any]
Scale = Callable[[Numbers], NDArray[np.uint8]]

STRIP_PIXELS = 2**18  # of a conversion at a time, so that temporary copies stay small
CHANNELS = 4


def from_array(values: Any, name: str) -> Image.Image:
    """A picture from an array [h, w] or [h, w, 1 to 4]: grey, grey and alpha, RGB, RGBA.

    Raises:
        InputError: If it has another shape, or numbers that are no pixels.
    """
    try:
        array = np.asarray(values)
    except Exception as cause:  # tensors on another device raise what they like
        raise InputError(f"{name} cannot be read as an array; give numpy on the CPU") from cause
    if array.dtype == object or array.ndim == 0:
        raise InputError(
            "expected an image: a path, bytes, an open file, an array or a Pillow image, got"
            f" {type(values).__name__}"
        )
    shape = list(array.shape)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= CHANNELS:
        hint = "; the channels come last" if len(shape) == 3 and shape[0] <= CHANNELS else ""
        raise InputError(
            f"{name} has the shape {shape[:8]}, expected [height, width] or [height, width,"
            f" channels] with 1 to 4 channels{hint}"
        )
    check_size((shape[1], shape[0]), name)  # a broadcast array has more numbers than memory
    pixels = eight_bit(array, name)
    return Image.fromarray(pixels[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(pixels))


def eight_bit(values: Numbers, name: str) -> NDArray[np.uint8]:
    """Numbers as 8 bits, see above.

    Raises:
        InputError: If they are not real, or out of range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise InputError(f"{name} has numbers of type {values.dtype}, expected integers or floats")
    scale = _scale(float(values.min()), float(values.max()), values.dtype.kind == "f", name)
    return scale(values)


def rgb(picture: Image.Image, name: str = "the image") -> Image.Image:
    """A loaded picture as 8-bit RGB; itself if it is that already.

    Raises:
        InputError: If it has numbers that are no pixels.
    """
    transparent = picture.has_transparency_data
    if picture.mode == "RGB" and not transparent:
        return picture
    result = Image.new("RGB", picture.size)
    scale = None
    if picture.mode == "F" or picture.mode.startswith("I"):
        parts = [(float(a.min()), float(a.max())) for a in map(np.asarray, _strips(picture))]
        low, high = min(p[0] for p in parts), max(p[1] for p in parts)
        if any(p != p for pair in parts for p in pair):
            low = float("nan")
        scale = _scale(low, high, picture.mode == "F", name)
    top = 0
    for strip in _strips(picture):
        if scale is not None:
            strip = _scaled(strip, scale, picture.info.get("transparency"))
        elif transparent:
            strip = strip.convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip)
        result.paste(strip.convert("RGB"), (0, top))
        top += strip.height
    return result


def _scaled(strip: Image.Image, scale: Scale, clear: object) -> Image.Image:
    """A strip as 8-bit grey; white where it has the value that means transparent."""
    numbers = np.asarray(strip)
    grey = scale(numbers)
    if isinstance(clear, int):
        grey = np.where(numbers == clear, np.uint8(255), grey)
    return Image.fromarray(grey)


def _strips(picture: Image.Image) -> Iterator[Image.Image]:
    """A picture in strips of whole rows, from the top."""
    rows = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _scale(low: float, high: float, fractions: bool, name: str) -> Scale:
    """The function from numbers between `low` and `high` to 8 bits."""
    if fractions and low >= 0 and high <= 1:
        return lambda a: np.rint(a.astype(np.float32) * np.float32(255)).astype(np.uint8)
    if low >= 0 and high <= 255:
        return lambda a: np.rint(a).astype(np.uint8)
    if not fractions and low >= 0 and high <= 65535:
        return lambda a: (a // 256).astype(np.uint8)
    expected = "0 to 1 or 0 to 255" if fractions else "0 to 255 or 0 to 65535"
    raise InputError(f"{name} has values from {low:g} to {high:g}, expected {expected}")
