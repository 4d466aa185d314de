"""How far our preprocessing is from the checkpoint's own image processor.

Ours is one resize a view, simple enough for a phone; a processor may resize twice, and chooses the
grid by the picture's shape. Both are asked for the same grid, on a picture cut to that grid's
shape, so that neither pads nor stretches and what remains is the difference of the resampling.

Units are those of the encoder's input, where a step of one in 8 bit is 1 / (255 std), 0.008 for a
std of 0.5. Measured on two photographs of 640x360 and 480x360 pixels: below 1e-7 for
LLaVA-OneVision, which resizes once, and 1e-4 to 0.0033 for SmolVLM, which resizes twice.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.runtimes.loops import images

# A mean of more than one step of 8 bit is another filter or another grid, not another rounding.
LIMIT = 0.01


def preprocessing_error(
    checkpoint: Checkpoint, image: ImageSpec, picture: Image.Image
) -> float | None:
    """Mean absolute difference of our views and the processor's, in normalized units.

    Args:
        checkpoint: Its processor is the reference.
        image: Our preprocessing; of a clip, one frame is compared.
        picture: RGB; its middle is used, as large as it has the grid's shape.

    Returns:
        The difference; None if the checkpoint has no image processor, the picture is too small, or
        the processor cannot produce the grid.
    """
    spec = replace(image, frames=1)
    # Whole multiples of the grid's smallest form, so that no rounding asks for another row.
    width, height = spec.columns * spec.width, spec.rows * spec.height
    width, height = width // gcd(width, height), height // gcd(width, height)
    scale = min(picture.width // width, picture.height // height)
    if not checkpoint.processor() or scale == 0:
        return None
    picture = _middle(picture, scale * width, scale * height)
    theirs = checkpoint.family.processor_views(_processor(checkpoint), picture, spec)
    if theirs is None:
        return None
    ours = images.views([picture], spec)
    if theirs.shape != ours.shape:
        return None
    return float(np.abs(ours - theirs).mean())


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    x, y = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((x, y, x + width, y + height))


def _processor(checkpoint: Checkpoint) -> Any:
    # Imported here: transformers is heavy. PIL, as it resamples like ours and is always there.
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(
        checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
    )
