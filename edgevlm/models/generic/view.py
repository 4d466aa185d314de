"""The view that an image processor makes of a picture, found by showing it one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.models.family import RESAMPLE
from edgevlm.models.shared.preprocessing import normalization
from edgevlm.runtimes.loops import images

PHOTO = Path(__file__).parents[2] / "photos" / "flower.jpg"
# Mean difference of a view from the processor's; a step of 8 bit is 0.008.
NEAR = 0.01
NUMBERS = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")


def one_view(own: Any) -> tuple[ImageSpec, bool]:
    """The one view that a processor makes, and whether ours equals it whatever a picture's shape.

    Args:
        own: The checkpoint's processor, of texts and pictures.

    Raises:
        PlanError: If its size goes by the picture, or it does more than to resize, crop and scale.
    """
    photo = Image.open(PHOTO).convert("RGB")
    wide, high = _seen(own, photo), _seen(own, photo.rotate(90, expand=True))
    if wide.shape != high.shape or wide.ndim != 4 or wide.shape[:2] != (1, 3):
        raise PlanError(
            f"its processor makes pixel_values {list(wide.shape)} of a wide picture and"
            f" {list(high.shape)} of a high one, and the generic path has one view [1, 3, h, w]"
        )
    stretch = _stretch(own.image_processor, *wide.shape[2:])
    square = stretch.height == stretch.width
    for spec in (stretch, replace(stretch, fit="crop")):
        if (square or spec is stretch) and _difference(photo, spec, wide) <= NEAR:
            return spec, True
    middle = photo.crop((0, 0, min(photo.size), min(photo.size)))
    error = _difference(middle, stretch, _seen(own, middle))
    if not square or error > NEAR:
        raise PlanError(
            "its processor does more with a picture than to resize, crop and scale: mean error"
            f" {error:.3f}, at most {NEAR} is accepted"
        )
    return stretch, False


def _seen(own: Any, picture: Image.Image) -> Any:
    """The view of a picture in a prompt.

    Raises:
        PlanError: If the processor makes something else.
    """
    made = own(text=own.image_token, images=[picture], return_tensors="np")
    if "pixel_values" not in made:
        raise PlanError(f"its processor makes {', '.join(made)}, and no pixel_values")
    return np.asarray(made["pixel_values"])


def _stretch(processor: Any, height: int, width: int) -> ImageSpec:
    """A view to which any picture is stretched, with the processor's filter and numbers."""
    values = {name: getattr(processor, name, None) for name in NUMBERS}
    known = {name: value for name, value in values.items() if value is not None}
    mean, std = normalization(known, 0.0, 1.0)
    filtered = RESAMPLE[int(processor.resample)]
    return ImageSpec(int(height), int(width), 1, 1, "first", 1, filtered, mean, std)


def _difference(picture: Image.Image, spec: ImageSpec, own: Any) -> float:
    return float(np.abs(images.views([picture], spec) - own).mean())
