"""The encoder of the Qwen-VL line, and its grid of patches.

The encoder has no size of its own: a picture of any grid of patches goes in, and a bundle has the
one of `--size`. Queries and keys are rotated by the place of a patch in two axes, so that their
tables are constants of the grid. Patches stand in blocks of 2x2, which the connector folds into a
token, and, where layers see windows, window by window; behind the connector tokens are in raster
order.

Rewrites, each exact: the kernel over two frames of a still image, which is the same frame twice, is
the sum of its two halves, and that over the two frames of a group of a clip is one over their six
channels; a group, which sees itself alone, is a view; orders and tables of the grid, computed by
the originals from its sides, are constants; windows of equal size are a batch.

Qwen3-VL and Qwen3.5 add learned positions, a square table resampled to the grid.

Sources: Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923, section 2.1), transformers'
`vision_utils.py`. Limits: sides that are multiples of a window, since others have windows of
several sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import rms_norm
from edgevlm.graphs.ops import attention, rotary
from edgevlm.graphs.parts import EncoderSpec

UNMERGEABLE = "queries and keys turn by the place of a patch, and a merged patch has none"
LACKING = (
    ("keys", "its keys turn by the place of a patch, not alone by what it shows"),
    ("flat_keys", "its keys turn by the place of a patch, not alone by what it shows"),
    ("patch_entropy", "its patches do not stand in raster order"),
)
# Signals of attention in the first layer, and in the last.
FIRST = ("early_cls_attention",)
LAST = (
    "cls_attention", "cls_logits", "last_cls_attention", "flat_cls_attention", "global_attention",
)  # fmt: skip


@dataclass(frozen=True)
class PatchGrid:
    """Patches of a view, and the order in which the encoder has them.

    Attributes:
        height: Rows of patches.
        width: Columns of patches.
        merge: Patches of a block's side; a block becomes a token.
        window: Blocks of a window's side; 0 where the order knows no windows.
    """

    height: int
    width: int
    merge: int
    window: int = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.merge, self.width // self.merge

    @property
    def windows(self) -> int:
        """Windows of a view."""
        rows, columns = self.tokens
        return rows * columns // self.window**2

    def ordered(self, x: Tensor) -> Tensor:
        """Patches in raster order [1, C, height, width] -> in the encoder's order [1, N, C]."""
        (rows, columns), m, channels = self.tokens, self.merge, x.shape[1]
        blocks = x.reshape(channels, rows, m, columns, m).permute(1, 3, 2, 4, 0)
        if self.window:
            k = self.window
            blocks = blocks.reshape(rows // k, k, columns // k, k, -1).transpose(1, 2)
        return blocks.reshape(1, self.height * self.width, channels)

    def in_raster_order(self, x: Tensor) -> Tensor:
        """Tokens [1, n, E] in the encoder's order -> in raster order."""
        if not self.window:
            return x
        (rows, columns), k = self.tokens, self.window
        blocks = x.reshape(rows // k, columns // k, k, k, -1).transpose(1, 2)
        return blocks.reshape(x.shape)


class Patches(nn.Module):
    """Patches of one view: pixel_values f32 [1, 3 * depth, h_px, w_px] -> [1, N, C].

    Args:
        patch: The original's kernel.
        grid: The patches.
        positions: Added where there are any, [N, C] in the encoder's order.
        depth: Frames of a view.
    """

    def __init__(
        self,
        patch: nn.Conv3d | nn.Conv2d,
        grid: PatchGrid,
        positions: Tensor | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch = patch if isinstance(patch, nn.Conv2d) else _of_frames(patch, depth)
        self.positions = None
        if positions is not None:
            self.positions = nn.Parameter(positions, requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.grid.ordered(self.patch(pixel_values))
        return patches if self.positions is None else patches + self.positions


def _of_frames(patch: nn.Conv3d, depth: int) -> nn.Conv2d:
    """The kernel over several frames, side by side; over frames that are the same for a still."""
    side, weight = patch.kernel_size[1], patch.weight.detach()  # [C, 3, frames, side, side]
    flat = nn.Conv2d(3 * depth, patch.out_channels, side, side, bias=False, device="meta")
    weight = weight.sum(2) if depth == 1 else weight.transpose(1, 2).flatten(1, 2)
    flat.weight = nn.Parameter(weight, requires_grad=False)
    flat.bias = patch.bias
    return flat


class GridTables(nn.Module):
    """Rotary tables cos and sin [1, N, D] of the patches: a quarter of D by each row, column.

    Args:
        grid: The patches.
        frequencies: Inverse frequencies of an axis, [D / 4], or of each, [2, D / 4].
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: PatchGrid, frequencies: Tensor) -> None:
        super().__init__()
        with torch.device("cpu"):
            sides = torch.arange(grid.height), torch.arange(grid.width)
            places = torch.stack(torch.meshgrid(*sides, indexing="ij"))[None].float()
            angles = (grid.ordered(places).unsqueeze(-1) * frequencies).flatten(2)
            angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


class RotaryLayer(nn.Module):
    """An encoder layer: pre-norm attention and MLP, [1, N, C] with cos, sin [1, N, D] -> [1, N, C].

    Patches of each of `windows` equal runs see each other alone.
    """

    layer: Any
    rotary = True

    def __init__(self, layer: nn.Module, windows: int = 1) -> None:
        super().__init__()
        self.layer, self.windows = layer, windows
        attn: Any = layer.attn
        self.heads = attn.num_heads

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"windows={self.windows}"

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.finish(x, *self.project(x, cos, sin))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values, each [1, N, H*D]."""
        query, key, value = self.layer.attn.qkv(norm(self.layer.norm1, x)).chunk(3, dim=-1)
        query, key = (rotary(t, cos, sin, self.heads) for t in (query, key))
        return query, key, value

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The layer's output [1, N, C], from its input and what `project` gave."""
        if self.windows > 1:
            shape = (self.windows, -1, x.shape[-1])
            query, key, value = (t.reshape(shape) for t in (query, key, value))
        mixed = attention(query, key, value, self.heads).reshape(x.shape)
        x = x + self.layer.attn.proj(mixed)
        fed: Tensor = self.layer.mlp(norm(self.layer.norm2, x))
        return x + fed


class Connector(nn.Module):
    """Norm, fold and two linear layers: patches [1, N, D] -> tokens in raster order [1, n, C].

    The norm is that of a patch, or, with `folded`, of the folded row.
    """

    def __init__(
        self, grid: PatchGrid, norm: nn.Module, first: Any, second: Any, folded: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.norm, self.folded = grid, norm, folded
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        rows = (1, x.shape[1] // self.grid.merge**2, -1)
        x = norm(self.norm, x.reshape(rows)) if self.folded else norm(self.norm, x).reshape(rows)
        x = self.second(nn.functional.gelu(self.first(x)))
        return self.grid.in_raster_order(x)


class Fold(nn.Module):
    """Values of patches to values of tokens in raster order, their mean: [1, N, E] -> [1, n, E]."""

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        block = self.grid.merge**2
        means = x.reshape(1, x.shape[1] // block, block, -1).mean(2)
        return self.grid.in_raster_order(means)


def patch_grid(vision: Any, image: ImageSpec, windows: bool = False) -> PatchGrid:
    """The patches of a view, in the order of windows where layers see such."""
    side, merge = vision.patch_size, vision.spatial_merge_size
    window = vision.window_size // (side * merge) if windows else 0
    return PatchGrid(image.height // side, image.width // side, merge, window)


def side_multiple(vision: Any, windows: bool = False) -> int:
    """Pixels of a block of patches, or of a window: a view's sides are multiples of them.

    Raises:
        PlanError: If a window has no block of patches.
    """
    block = int(vision.patch_size * vision.spatial_merge_size)
    if not windows:
        return block
    if vision.window_size < block:
        raise PlanError(
            f"window_size {vision.window_size} is less than a block of {block} pixels; correct"
            " config.json"
        )
    return int(vision.window_size // block * block)


def merger_connector(grid: PatchGrid, merger: Any) -> Connector:
    """The connector of Qwen3-VL's kin, from its merger."""
    folded = bool(merger.use_postshuffle_norm)
    return Connector(grid, merger.norm, merger.linear_fc1, merger.linear_fc2, folded)


def learned_positions(tower: Any, grid: PatchGrid) -> Tensor:
    """The learned table resampled to the grid, in the order of the patches: [N, C]."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    with torch.device("cpu"):
        rows, shares = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, grid.height, grid.width]]),
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=grid.merge,
        )
    table = tower.pos_embed.weight.detach()
    chosen: Tensor = table[rows.to(table.device)] * shares.to(table.device)[:, :, None]
    return chosen.sum(1)


def norm(module: Any, x: Tensor) -> Tensor:
    """A LayerNorm or an RMSNorm."""
    out: Tensor = module(x) if isinstance(module, nn.LayerNorm) else rms_norm(module, x)
    return out


def rotary_frequencies(tower: Any) -> Tensor:
    """Inverse frequencies of an axis of the tower's positions, [D / 4]."""
    with torch.device("cpu"):
        found: Tensor
        found, _ = type(tower.rotary_pos_emb).compute_axial_rope_parameters(tower.config)
    return found


def encoder_spec(vision: Any, grid: PatchGrid) -> EncoderSpec:
    """Numbers of the encoder.

    Args:
        vision: transformers' vision config.
        grid: The patches of a view; where there are windows, all layers but some see them alone.

    Raises:
        PlanError: If heads do not divide, or are not turned by two axes alike.
    """
    if vision.hidden_size % (4 * vision.num_heads):
        raise PlanError(
            f"num_heads {vision.num_heads} of vision_config does not divide hidden_size"
            f" {vision.hidden_size} into heads of a multiple of 4; correct config.json"
        )
    windowed: tuple[str, ...] = ()
    if grid.window:
        for names, layer in ((FIRST, 0), (LAST, vision.depth - 1)):
            windowed += () if layer in vision.fullatt_block_indexes else names
    return EncoderSpec(
        layers=vision.depth,
        patches=grid.height * grid.width,
        width=vision.hidden_size,
        heads=vision.num_heads,
        head_size=vision.hidden_size // vision.num_heads,
        unmergeable=UNMERGEABLE,
        lacking=(*LACKING, *((name, "its layer sees windows alone") for name in windowed)),
    )


def layer_windows(vision: Any, grid: PatchGrid) -> list[int]:
    """How many windows each layer sees apart; 1 is the whole view."""
    if not grid.window:
        return [1] * vision.depth
    full = vision.fullatt_block_indexes
    return [1 if layer in full else grid.windows for layer in range(vision.depth)]
