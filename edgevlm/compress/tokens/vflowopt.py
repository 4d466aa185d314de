"""VFlowOpt, the recycling: tokens of low importance become one token for each cell of the picture.

Over all grids (tiles, frames) together, G cells of a x a tokens in all:

 1. The K - g most important tokens are kept; g is the number of cells where others are left.
 2. The others of a cell become their mean, weighted by importance, at the most important of them.

Importance is the mean attention of the global tokens to a token. All kept tokens are one product
Y = W X with W [K, N]. Where step 1 empties a cell, the next most important token takes its place,
with the mean of its own cell.

Source: VFlowOpt (arXiv 2508.05211), sihany077/VFlowOpt. Limits: the encoder computes all N x N
weights of one layer; O(N K) products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import SMALLEST_NORM, keep_all, marked_indices, ranks
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = (
    "VFlowOpt (arXiv 2508.05211), section 3, sihany077/VFlowOpt@129eeef"
    " .../language_model/llava_qwen_training_free.py and .../multimodal_encoder/siglip_encoder.py"
)
SUMMARY = "keeps the tokens that global tokens attend to and recycles the rest as one token a cell"
FORMULA = "top of the global tokens' attention; the rest of a cell to its weighted mean"
STATIC = "one product [K, N]"
DIFFERS = (
    "same tokens as the original at the same number of tokens, in raster order; that number is K"
    " (original: it varies with the number of cells that have tokens). Importance has no entropy of"
    " pixels: its weight is 0 in all released settings; the token that is attended to most always"
    " counts as global (original: no number where none is). The pruning inside the language model"
    " and the search for settings are not here"
)


class Method(TokensMethod):
    """Keeps or recycles N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        cell: a, side of a cell in tokens; a fraction makes cells of uneven sides.

    Raises:
        ValueError: If `cell` is below 1.
    """

    signals = ("global_attention",)

    def __init__(self, tokens: int | None = None, *, cell: float = 17.4) -> None:
        if cell < 1:
            raise ValueError(f"cell is the side of a cell in tokens, at least 1, got {cell}")
        self.tokens, self.cell = tokens, cell

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N, or less than the cells.
        """
        kept = kept_tokens("vflowopt", self.tokens, shape.tokens)
        cells = 1 + max(cells_of(shape, self.cell))
        if kept < min(cells, shape.tokens):
            raise PlanError(
                f"vflowopt: cell={self.cell} makes {cells} cells and {kept} tokens are kept;"
                " take a larger cell or keep more tokens"
            )
        return kept

    def __call__(
        self, features: Tensor, *, global_attention: Tensor, shape: VisualShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keep and recycle.

        Args:
            features: f32 [1, N, C].
            global_attention: f32 [1, N], mean attention of the global tokens.
            shape: The grids; None is one square grid.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("vflowopt", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("vflowopt", features)
        check_shape("vflowopt", features, shape)
        weights, positions = recycle(global_attention[0], cells_of(shape, self.cell), kept)
        return weights @ features, positions.to(torch.int32).unsqueeze(0)


def cells_of(shape: VisualShape, side: float) -> list[int]:
    """Cell of each token; each grid has its own cells, in raster order."""
    cells: list[int] = []
    for height, width in shape.grids:
        start, across = max(cells, default=-1) + 1, int((width - 1) / side) + 1
        cells += [
            start + int(row / side) * across + int(column / side)
            for row in range(height)
            for column in range(width)
        ]
    return cells


def recycle(importance: Tensor, cells: list[int], kept: int) -> tuple[Tensor, Tensor]:
    """W, from importance f32 [N], at least 0, and the cell of each token.

    Returns:
        Weights f32 [K, N] and the positions of the kept tokens i64 [K], ascending.
    """
    total, count, cell = importance.shape[0], max(cells) + 1, torch.tensor(cells)
    rank = ranks(importance)
    inside = cell == torch.arange(count).unsqueeze(1)  # [G, N]
    left = (inside & (rank >= kept - count)).sum(1) > 0
    low = rank >= kept - left.sum()
    # Below any importance: a token that is not one of the cell's others.
    best = torch.where(inside & low, importance, -1.0)
    first = (best.argmax(1).unsqueeze(1) == torch.arange(total)) & (best.amax(1, True) >= 0)
    # Kept tokens come before the first of each cell, and these before all others.
    order = torch.where(low, rank + 2 * total, rank) - total * (first.sum(0) > 0)
    positions = marked_indices(ranks(-order.float()) < kept, kept)
    group = cell.index_select(0, positions).unsqueeze(1) == cell
    weighted = (group & low) * (importance + SMALLEST_NORM)
    own = (positions.unsqueeze(1) == torch.arange(total)).float()
    mean = weighted / weighted.sum(1, keepdim=True).clamp(min=SMALLEST_NORM)
    return torch.where(low.index_select(0, positions).unsqueeze(1), mean, own), positions
