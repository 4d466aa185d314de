"""The modules of the Pixtral encoder and its connector, in blocks of 2x2 patches.

Rewrites, each exact: patches go through the encoder in blocks, which the connector folds into a
token; the original's fold has the channels outside, so that the columns of the matrix behind it
are in another order here.

Source: Pixtral (arXiv 2410.07073, section 2.2); transformers' `models/pixtral/modeling_pixtral.py`
and `models/mistral3/modeling_mistral3.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgevlm.graphs.layers import rms_norm
from edgevlm.graphs.ops import attention, rotary
from edgevlm.models.shared.encoders.qwen import PatchGrid, RotaryLayer


class Patches(nn.Module):
    """Patches of one view, normed: pixel_values f32 [1, 3, h_px, w_px] -> [1, N, C]."""

    def __init__(self, tower: Any, grid: PatchGrid) -> None:
        super().__init__()
        self.patch, self.norm, self.grid = tower.patch_conv, tower.ln_pre, grid

    def forward(self, pixel_values: Tensor) -> Tensor:
        return rms_norm(self.norm, self.grid.ordered(self.patch(pixel_values)))


class PixtralLayer(RotaryLayer):
    """Pixtral's encoder layer: pre-norm attention and gated MLP, shapes of `RotaryLayer`."""

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.layer, self.windows, self.heads = layer, 1, layer.attention.num_heads

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, h = self.layer.attention, rms_norm(self.layer.attention_norm, x)
        query, key = (rotary(t, cos, sin, self.heads) for t in (attn.q_proj(h), attn.k_proj(h)))
        return query, key, attn.v_proj(h)

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        x = x + self.layer.attention.o_proj(attention(query, key, value, self.heads))
        fed: Tensor = self.layer.feed_forward(rms_norm(self.layer.ffn_norm, x))
        return x + fed


class Connector(nn.Module):
    """Norm, fold and three matrices: patches [1, N, D] -> tokens in raster order [1, n, C]."""

    def __init__(self, projector: Any, grid: PatchGrid) -> None:
        super().__init__()
        self.norm, self.block = projector.norm, grid.merge**2
        own = projector.patch_merger.merging_layer.weight
        columns = own.detach().reshape(own.shape[0], -1, self.block).transpose(1, 2)
        self.fold = nn.Linear(own.shape[1], own.shape[0], bias=False, device="meta")
        self.fold.weight = nn.Parameter(columns.reshape(own.shape), requires_grad=False)
        self.first, self.act, self.second = projector.linear_1, projector.act, projector.linear_2

    def forward(self, x: Tensor) -> Tensor:
        folded = self.fold(rms_norm(self.norm, x).reshape(1, x.shape[1] // self.block, -1))
        features: Tensor = self.second(self.act(self.first(folded)))
        return features
