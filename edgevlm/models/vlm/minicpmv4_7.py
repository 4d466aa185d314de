"""MiniCPM-V 4.7: the encoder and the pictures of MiniCPM-V 4.6, on a canvas of positions.

Positions have three axes, time, height and width, as in Qwen3.5. A picture is a canvas: a token of
the overview and one of a slice that show the same place have the same position, the marks around
them stand at the corners, and the text goes on behind the longer side. A line break directly behind
a picture, whoever wrote it, belongs to the picture and stands at its beginning.

Source: transformers' `models/minicpmv4_7/modular_minicpmv4_7.py`. Limits: those of MiniCPM-V 4.6.
"""

from __future__ import annotations

from typing import Any

from edgevlm.errors import PlanError
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.minicpmv import reference_features
from edgevlm.models.shared.llama import decoder_spec
from edgevlm.models.shared.tiles import minicpmv
from edgevlm.models.shared.tiles.minicpmv import parts, processor_options, processor_views
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
# The model finds a picture's borders by these ids; without one it places marks as text.
MARKS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a MiniCPM-V 4.7 checkpoint; see `Description`.

    Raises:
        PlanError: For slices, a size, a mode, a processor or a decoder that the static form
            has not, or where config.json lacks the id of a mark.
    """
    for name in MARKS:
        if type(number := getattr(config, name)) is not int:
            raise PlanError(
                f"config.json says {name} {number}, expected the id of that mark, by which the"
                " model finds the borders of a picture; take config.json from the model that the"
                " weights were trained from"
            )
    decoder = decoder_spec(config.text_config)
    return minicpmv.describe(config, processor, recipe, decoder, [config.newline_id])
