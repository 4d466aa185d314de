"""Pictures to the encoder's input, by the numbers of the manifest (Pillow and numpy)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import InputError
from edgevlm.runtimes.loops.images.pictures import Picture, load

Array = NDArray[np.float32]


def views(pictures: Iterable[Picture], spec: ImageSpec) -> Array:
    """One image, or the frames of one clip, as the views that `encode` takes.

    Args:
        pictures: One image, or `spec.frames` of them, taken one at a time; each goes through
            `pictures.load`.
        spec: The manifest's numbers.

    Returns:
        f32 [P, 3, h_px, w_px]: frames, or [P, 3 * depth, h_px, w_px] where several are a view; or
        the only view; or tiles in raster order with the global view first or last.

    Raises:
        InputError: If a picture cannot be read, or there are more or fewer.
    """
    count, filled = 0, 0
    size = spec.height, spec.width
    pixels = np.empty((spec.views * spec.depth, 3, *size), np.float32)
    scale = np.asarray(spec.std, np.float32) * np.float32(255)
    shift = np.asarray(spec.mean, np.float32) * np.float32(255)
    for picture in pictures:
        count += 1
        if count > spec.frames:
            continue
        for tile in _tiles(load(picture), spec):
            values = (np.asarray(tile, np.float32) - shift) / scale
            pixels[filled] = values.transpose(2, 0, 1)
            filled += 1
        del picture  # before the next one is decoded
    if count != spec.frames:
        raise InputError(f"the bundle takes {spec.frames} frames per clip, got {count}")
    pixels[filled:] = pixels[filled - 1]  # the last view of a clip is filled up
    return pixels.reshape(spec.views, spec.channels, *size)


def shrink(frame: Image.Image, spec: ImageSpec) -> Image.Image:
    """A frame of a clip at a size that `views` resizes no more; it may crop it."""
    return _scaled(frame, (spec.width, spec.height), spec)


def _tiles(picture: Image.Image, spec: ImageSpec) -> list[Image.Image]:
    """A frame as one view; an image as its only view, or as tiles and the global view."""
    size = (spec.width, spec.height)
    if spec.rows * spec.columns == 1:
        return [_resized(picture, size, spec)]
    resized = _resized(picture, (size[0] * spec.columns, size[1] * spec.rows), spec)
    tiles = [
        resized.crop((x, y, x + size[0], y + size[1]))
        for y in range(0, resized.height, size[1])
        for x in range(0, resized.width, size[0])
    ]
    overview = _resized(picture, size, spec)
    return [overview, *tiles] if spec.global_view == "first" else [*tiles, overview]


def _resized(picture: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    resized = _scaled(picture, size, spec)
    x, y = (resized.width - size[0]) // 2, (resized.height - size[1]) // 2
    return resized.crop((x, y, x + size[0], y + size[1])) if resized.size != size else resized


def _scaled(picture: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    filters = {f.name.lower(): f for f in Image.Resampling}
    whole = _covering(picture.size, spec.shorter or size[0]) if spec.fit == "crop" else size
    return picture if picture.size == whole else picture.resize(whole, filters[spec.resample])


def _covering(picture: tuple[int, int], side: int) -> tuple[int, int]:
    """The size of a picture [width, height] whose shorter side has `side` pixels."""
    short = min(picture)
    width, height = (side if edge == short else int(side * edge / short) for edge in picture)
    return width, height
