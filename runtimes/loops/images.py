"""Images to the encoder's input, by the numbers of the manifest (Pillow and numpy).

A file is untrusted: its size is bounded before any pixel is read, and every failure of the decoder
is an error of one line.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import InputError
from edgevlm.libraries import require

# 50 million pixels are 150 MB of RGB: more than phone cameras, less than a bomb.
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

_TOO_LARGE = (
    f"expected at most {PIXEL_LIMIT // 10**6} million and {SIDE_LIMIT} a side; make it smaller"
)

Array = NDArray[np.float32]


def load(path: str | Path) -> Image.Image:
    """Decode an image: RGB, EXIF orientation applied, transparency over white.

    Raises:
        InputError: If it is missing, not an image, damaged or too large.
    """
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF only from Pillow 11.3
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats) as picture:
                width, height = picture.size
                if width * height > PIXEL_LIMIT or max(width, height) > SIDE_LIMIT:
                    raise InputError(f"'{path}' has {width}x{height} pixels; {_TOO_LARGE}")
                return rgb(ImageOps.exif_transpose(picture))
    except InputError:
        raise
    except FileNotFoundError as cause:
        raise InputError(f"no image at '{path}'") from cause
    except IsADirectoryError as cause:
        raise InputError(f"'{path}' is a folder, expected an image") from cause
    except UnidentifiedImageError as cause:
        raise InputError(f"'{path}' is not an image that can be read") from cause
    except Image.DecompressionBombError as cause:
        raise InputError(f"'{path}' has too many pixels; {_TOO_LARGE}") from cause
    except Exception as cause:  # decoders raise anything from OSError to struct.error
        raise InputError(f"'{path}' cannot be read as an image: {cause}") from cause


def rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB as the models' own processors produce it: transparency over white.

    16-bit grey keeps its upper eight bits, where Pillow would clip values at 255.
    """
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        wide = picture.mode != "I" or values.max(initial=0) > 255
        grey = (values // 256 if wide else values).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def views(pictures: Sequence[Image.Image], spec: ImageSpec) -> Array:
    """One image, or the frames of one clip, as the views that `encode` takes.

    Args:
        pictures: One image, or `spec.frames` of them; converted to RGB.
        spec: The manifest's numbers.

    Returns:
        f32 [P, 3, h_px, w_px]: frames; or the only view; or tiles in raster order with the global
        view first or last.
    """
    size = (spec.width, spec.height)
    pictures = [p if p.mode == "RGB" else rgb(p) for p in pictures]
    if spec.views == len(pictures):
        tiles = [_resized(p, size, spec) for p in pictures]
    else:
        (picture,) = pictures
        resized = _resized(picture, (size[0] * spec.columns, size[1] * spec.rows), spec)
        tiles = [
            resized.crop((x, y, x + size[0], y + size[1]))
            for y in range(0, resized.height, size[1])
            for x in range(0, resized.width, size[0])
        ]
        overview = _resized(picture, size, spec)
        tiles = [overview, *tiles] if spec.global_view == "first" else [*tiles, overview]
    pixels = np.stack([np.asarray(tile, np.float32) for tile in tiles])
    scale = np.asarray(spec.std, np.float32) * np.float32(255)
    shift = np.asarray(spec.mean, np.float32) * np.float32(255)
    return np.ascontiguousarray(((pixels - shift) / scale).transpose(0, 3, 1, 2))


def load_clip(path: str | Path, frames: int) -> tuple[list[Image.Image], list[float], float]:
    """Decode `frames` frames spread evenly over a video, first and last included.

    Returns:
        The RGB frames, their times in seconds, and the clip's duration in seconds.

    Raises:
        InputError: If PyAV is missing, or the file is not a video or has too few frames.
    """
    av = require("reading a video", "PyAV", "av", "video", InputError)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stamps = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
            unit = float(stream.time_base or 0)
        if len(stamps) < frames:
            raise InputError(f"'{path}' has {len(stamps)} frames, the bundle needs {frames}")
        chosen = [stamps[i] for i in np.linspace(0, len(stamps) - 1, frames).round().astype(int)]
        pictures = _pictures(av, path, set(chosen))
    except InputError:
        raise
    except FileNotFoundError as cause:
        raise InputError(f"no video at '{path}'") from cause
    except Exception as cause:  # of many types; an IndexError for a file without video
        raise InputError(f"'{path}' cannot be read as a video: {cause}") from cause
    if len(pictures) < len(set(chosen)):
        raise InputError(f"'{path}' is damaged: some of its frames cannot be decoded")
    times = [(stamp - stamps[0]) * unit for stamp in chosen]
    return [pictures[stamp] for stamp in chosen], times, (stamps[-1] - stamps[0]) * unit


def _pictures(av: Any, path: str | Path, stamps: set[int]) -> dict[int, Image.Image]:
    """The frames with these time stamps; decoding ends with the last of them."""
    pictures: dict[int, Image.Image] = {}
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.width * frame.height > PIXEL_LIMIT:
                size = f"{frame.width}x{frame.height}"
                raise InputError(f"'{path}' has frames of {size} pixels; {_TOO_LARGE}")
            if frame.pts in stamps:
                pictures[frame.pts] = frame.to_image().convert("RGB")
            if len(pictures) == len(stamps):
                break
    return pictures


def _resized(picture: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    filters = {f.name.lower(): f for f in Image.Resampling}
    whole = _covering(picture.size, size) if spec.fit == "crop" else size
    resized = picture if picture.size == whole else picture.resize(whole, filters[spec.resample])
    x, y = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return resized.crop((x, y, x + size[0], y + size[1])) if whole != size else resized


def _covering(picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size of a picture [width, height] whose shorter side is that of a square view."""
    short, side = min(picture), size[0]
    width, height = (side if edge == short else int(side * edge / short) for edge in picture)
    return width, height
