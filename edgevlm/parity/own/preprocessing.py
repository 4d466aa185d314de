"""How far our preprocessing is from the checkpoint's own image processor.

Ours is one resize a view, simple enough for a phone; a processor may resize twice, and chooses the
grid by the image's shape. Both are asked for the same grid, on an image cut to that grid's
shape, so that neither pads nor stretches and what remains is the difference of the resampling.

Units are those of the encoder's input, where a step of one in 8 bit is 1 / (255 std), 0.008 for a
std of 0.5. Measured on two photographs of 640x360 and 480x360 pixels: below 1e-7 for
LLaVA-OneVision, which resizes once, and 1e-4 to 0.0033 for SmolVLM, which resizes twice.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import numpy as np
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.processor import load_images
from edgevlm.runtimes.loops import images


def preprocessing_error(
    checkpoint: Checkpoint, spec: ImageSpec, image: Image.Image, middle: bool = True
) -> float | None:
    """Mean absolute difference of our views and the processor's, in normalized units.

    Args:
        checkpoint: Its processor gives the expected views.
        spec: Our preprocessing; of a clip, one frame is compared.
        image: RGB.
        middle: Its middle is used, as large as it has the grid's shape; else all of it, where the
            processor does not go by a picture's shape.

    Returns:
        The difference; None if the checkpoint has no image processor, or it does not produce the
        grid.
    """
    if not checkpoint.processor(spec.subject):
        return None
    spec = replace(spec, frames=1, depth=1)
    if middle:
        image = of_grid(image, spec)
    expected = checkpoint.family.processor_views(load_images(checkpoint), image, spec)
    if expected is None:
        return None
    actual = images.views([image], spec)
    if expected.shape != actual.shape:
        return None
    return float(np.abs(actual - expected).mean())


def of_grid(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The middle of a picture, as large as it has the grid's shape.

    It is an odd multiple of the grid's smallest form: then no rounding asks for another row, and
    every filter has to work. A picture that has the shape, or is too small for it, stays whole.
    """
    width, height = spec.columns * spec.width, spec.rows * spec.height
    width, height = width // gcd(width, height), height // gcd(width, height)
    scale = min(image.width // width, image.height // height)
    if scale == 0 or image.width * height == image.height * width:
        return image
    width, height = width * (scale - 1 + scale % 2), height * (scale - 1 + scale % 2)
    x, y = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((x, y, x + width, y + height))
