"""MiniCPM-V 4.6: an encoder that folds 2x2 patches inside and again behind it, over Qwen3.5.

A picture is one view of `--size`, 448x448 pixels unless told, which stands for 64 tokens, or an
overview and `--tiles` RxR slices. Its marks and tokens have positions that count up, as text has.

Source: transformers' `models/minicpmv4_6/modeling_minicpmv4_6.py`. Limits: those of
`models.shared.tiles.minicpmv`: grids of slices with more rows than columns or fewer are refused.
"""

from __future__ import annotations

from typing import Any

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


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a MiniCPM-V 4.6 checkpoint; see `Description`.

    Raises:
        PlanError: For slices, a size, a mode, a processor or a decoder that the static form
            has not.
    """
    decoder = decoder_spec(config.text_config, plain=True)
    return minicpmv.describe(config, processor, recipe, decoder)
