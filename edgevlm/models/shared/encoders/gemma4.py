"""The vision encoder of Gemma 4: patches of any grid, whose queries and keys turn by two axes.

The encoder has no size of its own: a picture of any grid of patches goes in, and a bundle has the
one of `--size`. A patch has the sum of two learned rows, of its column and of its row; each half of
a head turns by one of the two. Queries, keys and values are normed head by head, and attention has
no factor. 3x3 patches become a token, their mean.

Rewrites, each exact: the matrix of a patch is a convolution; positions and tables of the grid,
computed by the original from positions, are constants; the sum over positions of a token is a mean
over a fold; padding is left out.

Source: transformers' `models/gemma4/modeling_gemma4.py`.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.errors import PlanError
from edgevlm.graphs.layers import rms_norm, scaled
from edgevlm.graphs.ops import attention, rotary
from edgevlm.graphs.parts import EncoderParts, EncoderSpec
from edgevlm.models.shared.folds import MeanFold

UNMERGEABLE = "queries and keys turn by the place of a patch, and a merged patch has none"
LACKING = tuple(
    (name, "its keys turn by the place of a patch, not alone by what it shows")
    for name in ("keys", "flat_keys")
)


class Patches(nn.Module):
    """Patches of a view in raster order: pixel_values f32 [1, 3, h_px, w_px] -> [1, N, D].

    Args:
        embedder: transformers' module.
        grid: Rows and columns of patches.
    """

    def __init__(self, embedder: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        height, width = self.grid = grid
        matrix, side = embedder.input_proj.weight.detach(), embedder.patch_size
        self.patch = nn.Conv2d(3, len(matrix), side, side, bias=False, device="meta")
        kernel = matrix.reshape(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()
        self.patch.weight = nn.Parameter(kernel, requires_grad=False)
        columns, rows = (embedder.position_embedding_table[axis] for axis in (0, 1))
        self.rows = nn.Parameter(rows[:height, None].clone(), requires_grad=False)
        self.columns = nn.Parameter(columns[None, :width].clone(), requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        places = (self.columns + self.rows).flatten(0, 1)  # [N, D]
        return self.patch(pixel_values).flatten(2).transpose(1, 2) + places


class GridTables(nn.Module):
    """Rotary tables cos and sin [1, N, D] of the patches: half of D by each column, then row.

    Args:
        grid: Rows and columns of patches.
        frequencies: Inverse frequencies of an axis, [D / 4].
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int], frequencies: Tensor) -> None:
        super().__init__()
        with torch.device("cpu"):
            rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
            by_axis = [x.reshape(1, -1, 1).float() * frequencies for x in (columns, rows)]
            angles = torch.cat([part for one in by_axis for part in (one, one)], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


class TowerLayer(nn.Module):
    """An encoder layer of four norms, [1, N, D] with cos, sin [1, N, head_size] -> [1, N, D]."""

    layer: Any
    ones: Tensor
    rotary = True

    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, heads
        self.head_size = layer.self_attn.head_dim
        with torch.device("cpu"):  # values are normed without a weight
            self.register_buffer("ones", torch.ones(self.head_size), persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.finish(x, *self.project(x, cos, sin))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values, each [1, N, H*D]."""
        attn, h = self.layer.self_attn, rms_norm(self.layer.input_layernorm, x)
        query, key, value = attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)
        query = self._turned(self._normed(query, attn.q_norm.weight), cos, sin)
        key = self._turned(self._normed(key, attn.k_norm.weight), cos, sin)
        # The original has no factor of scores, attention here has 1 / sqrt(D).
        return scaled(query, sqrt(self.head_size)), key, self._normed(value, self.ones)

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The layer's output [1, N, D], from its input and what `project` gave."""
        layer = self.layer
        mixed = layer.self_attn.o_proj(attention(query, key, value, self.heads))
        x = x + rms_norm(layer.post_attention_layernorm, mixed)
        fed = layer.mlp(rms_norm(layer.pre_feedforward_layernorm, x))
        return x + rms_norm(layer.post_feedforward_layernorm, fed)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Each head a row: targets take three dimensions."""
        by_head = x.reshape(1, -1, self.head_size)
        epsilon = self.layer.self_attn.v_norm.eps
        normed = torch.nn.functional.rms_norm(by_head, (self.head_size,), weight, epsilon)
        return normed.reshape(x.shape)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Both halves of each head, each by the tables of its axis."""
        half = self.head_size // 2
        halves = x.reshape(1, -1, 2, half)  # [1, N*H, 2, D/2]
        turned = []
        for axis in (0, 1):
            part, table = halves[:, :, axis], slice(axis * half, (axis + 1) * half)
            rows = part.reshape(1, x.shape[1], -1)
            done = rotary(rows, cos[..., table], sin[..., table], self.heads)
            turned.append(done.reshape(part.shape))
        return torch.stack(turned, dim=2).reshape(x.shape)


class Connector(nn.Module):
    """Means of patches, normed without a weight, projected: [1, N, D] -> [1, n, C].

    Args:
        tower: transformers' encoder, which may shift and stretch the means.
        embedder: transformers' projector.
        fold: Patches to tokens.
    """

    ones: Tensor
    shift: Tensor | None
    stretch: Tensor | None

    def __init__(self, tower: Any, embedder: Any, fold: MeanFold) -> None:
        super().__init__()
        self.fold, self.projection = fold, embedder.embedding_projection
        self.eps, width = embedder.eps, embedder.multimodal_hidden_size
        self.factor = sqrt(width)
        moves = tower.config.standardize
        self.register_buffer("shift", tower.std_bias if moves else None, persistent=False)
        self.register_buffer("stretch", tower.std_scale if moves else None, persistent=False)
        with torch.device("cpu"):
            self.register_buffer("ones", torch.ones(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fold(x) * self.factor
        if self.shift is not None and self.stretch is not None:
            x = (x - self.shift) * self.stretch
        x = torch.nn.functional.rms_norm(x, (x.shape[-1],), self.ones, self.eps)
        projected: Tensor = self.projection(x)
        return projected


def tower_spec(vision: Any, patches: int) -> EncoderSpec:
    """Numbers of the encoder.

    Args:
        vision: transformers' vision config.
        patches: Patches of a view.

    Raises:
        PlanError: If it has fewer heads of keys than of queries, or another rotary scheme.
    """
    heads, groups = vision.num_attention_heads, vision.num_key_value_heads
    if heads != groups:
        raise PlanError(f"a vision encoder of {heads} heads and {groups} of keys is not supported")
    return EncoderSpec(
        layers=vision.num_hidden_layers,
        patches=patches,
        width=vision.hidden_size,
        heads=heads,
        head_size=vision.head_dim,
        unmergeable=UNMERGEABLE,
        lacking=LACKING,
    )


def tower_parts(
    spec: EncoderSpec, tower: Any, embedder: Any, grid: tuple[int, int]
) -> EncoderParts:
    """The encoder over transformers' modules, for a view of `grid` patches."""
    with torch.device("cpu"):
        rope = type(tower.encoder.rotary_emb)
        frequencies, _ = rope.compute_axial_rope_parameters(tower.config)
    fold = MeanFold(tower.config.pooling_kernel_size, grid)
    return EncoderParts(
        spec=spec,
        embedding=Patches(tower.patch_embedder, grid),
        layers=tuple(TowerLayer(layer, spec.heads) for layer in tower.encoder.layers),
        connector=Connector(tower, embedder, fold),
        fold=fold,
        grid=GridTables(grid, frequencies),
    )
