"""GLM-OCR: an encoder with rotary positions and norms of queries and keys, and GLM with M-RoPE.

A view has 448x448 pixels unless told. Behind the encoder each block of 2x2 patches becomes a token
by a convolution, which is a matrix here.

Source: transformers' `models/glm_ocr/modeling_glm_ocr.py`. Limits: those of `models.shared.qwen`
and `models.shared.decoders.glm`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgevlm.graphs.layers import rms_norm
from edgevlm.graphs.ops import rotary
from edgevlm.models.shared.encoders.qwen import PatchGrid, RotaryLayer
from edgevlm.models.shared.qwen import Line, reference_features
from edgevlm.models.shared.qwen_pictures import (
    Clips,
    Marks,
    captioned_clip,
    processor_options,
    processor_views,
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
MARKS = Marks(
    "<|image|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|video|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)


class Layer(RotaryLayer):
    """An encoder layer that norms queries and keys head by head before it turns them."""

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.layer.attn
        query, key, value = attn.qkv(rms_norm(self.layer.norm1, x)).chunk(3, dim=-1)
        query = rotary(self._normed(attn.q_norm, query), cos, sin, self.heads)
        return query, rotary(self._normed(attn.k_norm, key), cos, sin, self.heads), value

    def _normed(self, norm: Any, x: Tensor) -> Tensor:
        # Each head is a row: targets take three dimensions.
        by_head = x.reshape(1, x.shape[1] * self.heads, -1)  # [1, N*heads, D]
        return rms_norm(norm, by_head).reshape(x.shape)


class Connector(nn.Module):
    """Norm, fold and the original's merger: patches [1, N, D] -> tokens in raster order [1, n, C].

    A convolution of two by two patches is a matrix over their rows side by side.
    """

    def __init__(self, grid: PatchGrid, tower: Any) -> None:
        super().__init__()
        self.norm, self.merger, kernel = tower.post_layernorm, tower.merger, tower.downsample
        self.block = grid.merge**2
        width, patch = kernel.out_channels, kernel.in_channels
        self.fold = nn.Linear(self.block * patch, width, bias=False, device="meta")
        rows = kernel.weight.detach().permute(0, 2, 3, 1).reshape(width, -1)
        self.fold.weight = nn.Parameter(rows, requires_grad=False)
        self.fold.bias = kernel.bias

    def forward(self, x: Tensor) -> Tensor:
        blocks = rms_norm(self.norm, x).reshape(1, x.shape[1] // self.block, -1)
        features: Tensor = self.merger(self.fold(blocks))
        return features


LINE = Line(
    (448, 448),
    CLIP_MEAN,
    CLIP_STD,
    MARKS,
    Clips(captioned_clip, as_images=True),
    counts_frames=True,
    layer=Layer,
    connector=Connector,
)
describe, parts = LINE.describe, LINE.parts
