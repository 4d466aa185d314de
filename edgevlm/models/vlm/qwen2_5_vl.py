"""Qwen2.5-VL (arXiv 2502.13923): an encoder with windows and rotary positions, Qwen2 with M-RoPE.

A view has 448x448 pixels unless told. All layers of the encoder but a few see windows of 112 pixels
alone, which are of one size where a picture's sides are multiples of that.

Sources: arXiv 2502.13923, section 2.1; transformers' `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.
Limits: those of `models.shared.qwen`.
"""

from __future__ import annotations

from typing import Any

from edgevlm.models.shared.encoders.qwen import Connector, PatchGrid
from edgevlm.models.shared.qwen import Line, reference_features
from edgevlm.models.shared.qwen_pictures import (
    Clips,
    processor_options,
    processor_views,
    spaced_clip,
)
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD

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


def connector(grid: PatchGrid, tower: Any) -> Connector:
    """RMSNorm of patches, and two linear layers."""
    merger = tower.merger
    return Connector(grid, merger.ln_q, merger.mlp[0], merger.mlp[2])


CLIPS = Clips(spaced_clip, counts_frames=False)
LINE = Line((448, 448), CLIP_MEAN, CLIP_STD, clips=CLIPS, windows=True, connector=connector)
describe, parts = LINE.describe, LINE.parts
