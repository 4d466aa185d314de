"""Memory that decoding takes, asked for before it is taken.

Bytes of a pixel were measured on pictures of 12 megapixels with Pillow 13.0: resident memory at
its highest while a picture is decoded. Pillow keeps RGB in four bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgevlm.errors import InputError

# 50 million pixels are 200 MB in Pillow: more than phone cameras, less than a bomb.
PIXEL_LIMIT = 50_000_000
# The longest side of a JPEG. A resize keeps coefficients by source pixel, so that a line of
# 50 million pixels would cost gigabytes.
SIDE_LIMIT = 65_535
TOO_LARGE = (
    f"expected at most {PIXEL_LIMIT // 10**6} million and {SIDE_LIMIT} a side; make it smaller"
)
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
RGB_BYTES = 4
# Formats whose decoder keeps more than the picture: bytes of a pixel beside its mode's.
DECODER_BYTES = {"WEBP": 13, "AVIF": 13, "JPEG2000": 21, "TIFF": 4, "GIF": 4}
HEIC_BYTES = 16
READS_WHOLE = ("WEBP", "AVIF", "JPEG2000", "TIFF")  # formats whose file is read into memory
STRIP_BYTES = 4 * 10**6  # temporary copies of a conversion in strips
TIFF_BITS, TIFF_SAMPLES = 258, 277  # tags: bits of a sample, samples of a pixel
SCALES = (1, 2, 4, 8)  # a JPEG can be decoded at a whole, a half, a quarter and an eighth


@dataclass(frozen=True)
class Room:
    """How much memory a decoder may take.

    Attributes:
        shortage: (bytes) -> bytes that a memory budget lacks for so many more; None is no budget.
        width: Of the pixels that a picture is resized to.
        height: The same.
    """

    shortage: Callable[[int], int] | None = None
    width: int = 0
    height: int = 0

    @property
    def bounded(self) -> bool:
        """Whether there is a budget."""
        return self.shortage is not None

    def claim(self, size: float, name: str, what: str = "takes") -> None:
        """Refuse what does not fit.

        Raises:
            InputError: With the bytes that it takes, and those that the budget lacks.
        """
        size = int(size)
        if self.shortage is not None and (missing := self.shortage(size)):
            more = -(-missing // 10**6)
            raise InputError(
                f"{name} {what} {-(-size // 10**6)} MB to decode, {more} MB more than the memory"
                f" budget leaves; raise --memory by {more} MB, or make it smaller"
            )

    def decode(self, picture: Any, file_bytes: int, turn: int, name: str) -> None:
        """Claim the memory of a picture that is not decoded; a JPEG is reduced if necessary.

        It is reduced to no less than the pixels that it is resized to. `turn` is the orientation
        that EXIF gives it.

        Raises:
            InputError: If it does not fit.
        """
        if self.shortage is None:
            return
        scales = [s for s in SCALES if s == 1 or self._serves(picture, s, turn > 4)]
        sizes = {scale: self._bytes(picture, scale, file_bytes, turn) for scale in scales}
        scale = next((s for s in scales if not self.shortage(sizes[s])), None)
        if scale is None:
            self.claim(min(sizes.values()), name)
        elif scale > 1:
            picture.draft(None, (picture.width // scale, picture.height // scale))

    def _serves(self, picture: Any, scale: int, sideways: bool) -> bool:
        """Whether a picture can be reduced, and has then enough pixels."""
        least = (self.height, self.width) if sideways else (self.width, self.height)
        enough = all(side // scale >= most for side, most in zip(picture.size, least, strict=True))
        return picture.format in ("JPEG", "MPO") and min(least) > 0 and enough

    def _bytes(self, picture: Any, scale: int, file_bytes: int, turn: int) -> int:
        whole: int = picture.width * picture.height
        width, height = -(-picture.width // scale), -(-picture.height // scale)
        plain = MODE_BYTES.get(picture.mode, RGB_BYTES)
        further = RGB_BYTES if picture.mode != "RGB" or "transparency" in picture.info else 0
        each = plain + (plain if turn > 1 else 0) + further
        decoder = DECODER_BYTES.get(picture.format, 0)
        if picture.format == "TIFF":  # a strip is gone before RGB is made
            decoder = max(decoder, _strip_bytes(picture) - further)
        each += decoder
        read = file_bytes if picture.format in READS_WHOLE else 0
        resized = RGB_BYTES * self.width * (width if turn > 4 else height)
        taken: int = width * height * each + _coefficients(picture, whole) + read + resized
        return taken + STRIP_BYTES


def check_size(size: tuple[int, int], name: str, what: str = "has") -> None:
    """Refuse a picture or a frame [width, height] that is empty or too large.

    Raises:
        InputError: With its size.
    """
    width, height = size
    if not width or not height:
        raise InputError(f"{name} {what} {width}x{height} pixels, expected at least one")
    if width * height > PIXEL_LIMIT or max(size) > SIDE_LIMIT:
        raise InputError(f"{name} {what} {width}x{height} pixels; {TOO_LARGE}")


def reread_bytes(picture: Image.Image) -> int:
    """Bytes to make RGB of a picture in memory."""
    return RGB_BYTES * picture.width * picture.height + STRIP_BYTES


def _strip_bytes(picture: Any) -> int:
    """Bytes of a pixel that a TIFF's decoder holds of a strip, which may be the whole picture."""
    bits, samples = picture.tag_v2.get(TIFF_BITS, (1,)), picture.tag_v2.get(TIFF_SAMPLES, 1)
    each = max((bits,) if isinstance(bits, int) else bits)
    return int(-(-each * samples // 8))


def _coefficients(picture: Any, pixels: int) -> int:
    """Bytes of a progressive JPEG's coefficients, which its decoder keeps at every scale."""
    layers = getattr(picture, "layer", ())
    if not picture.info.get("progressive") or not layers:
        return 0
    widest, highest = max(h for _, h, _, _ in layers), max(v for _, _, v, _ in layers)
    return int(2 * pixels * sum(h * v for _, h, v, _ in layers) // (widest * highest))
