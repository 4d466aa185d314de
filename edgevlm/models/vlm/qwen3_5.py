"""Qwen3.5: the encoder of Qwen3-VL with one level, and a decoder of gated delta rule and attention.

A view has 512x512 pixels unless told; frequencies of the three axes of a position alternate. Three
of four layers of the decoder are recurrent: they hold a matrix a head and a few rows, whatever the
length of the prompt. The others are attention with a gate, and turn a quarter of a head.

Sources: Gated DeltaNet (arXiv 2412.06464); transformers' `models/qwen3_5/modeling_qwen3_5.py`.
Limits: those of `models.shared.qwen`; methods that work inside the decoder are refused.
"""

from edgevlm.models.shared.qwen import Line, reference_features
from edgevlm.models.shared.qwen_pictures import (
    Clips,
    processor_options,
    processor_views,
    timed_clip,
)

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
LINE = Line((512, 512), 0.5, 0.5, clips=Clips(timed_clip), learned=True)
describe, parts = LINE.describe, LINE.parts
