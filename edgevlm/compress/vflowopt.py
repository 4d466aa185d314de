"""VFlowOpt, the recycling: tokens of low importance become one token for each cell of the picture.

Over all grids (tiles, frames) together, G cells of a x a tokens in all:

 1. The K - g most important tokens are kept; g is the number of cells where others are left.
 2. The others of a cell become their mean, weighted by importance, at the most important of them.

Importance is the mean attention of the global tokens to a token. Rows are one product Y = W X with
W [K, N]. Where step 1 empties a cell, the next most important token fills up, with the mean of its
cell.

Source: VFlowOpt (arXiv 2508.05211), sihany077/VFlowOpt. Limits: the encoder computes all N x N
weights of one layer; O(N K) products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import (
    SMALLEST_NORM,
    VisualShape,
    check_shape,
    keep_all,
    kept_tokens,
    marked_indices,
    places,
    square_shape,
)

SOURCE = (
    "VFlowOpt (arXiv 2508.05211), section 3, sihany077/VFlowOpt@129eeef"
    " .../language_model/llava_qwen_training_free.py and .../multimodal_encoder/siglip_encoder.py"
)
SUMMARY = "keeps what global tokens attend to and recycles the rest as one token for each cell"
FORMULA = "top of the global tokens' attention; the rest of a cell to its weighted mean"
STATIC = "one product [K, N]"
DIFFERS = (
    "same rows as the original at the same number of tokens, in raster order; that number is K"
    " (original: it varies with the number of cells that have tokens). Importance has no entropy of"
    " pixels: its weight is 0 in all released settings; the token that is attended to most always"
    " counts as global (original: no number where none is). The pruning inside the language model"
    " and the search for settings are not here"
)


class Method:
    """Keeps or recycles N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        cell: a, side of a cell in tokens; not an integer where cells shall fit unevenly.

    Raises:
        ValueError: If `cell` is below 1.
    """

    signals: tuple[str, ...] = ("global_attention",)

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
    """Cell of each token; each grid has its own, in raster order."""
    found: list[int] = []
    for height, width in shape.grids:
        start, across = max(found, default=-1) + 1, int((width - 1) / side) + 1
        found += [
            start + int(row / side) * across + int(column / side)
            for row in range(height)
            for column in range(width)
        ]
    return found


def recycle(importance: Tensor, cells: list[int], kept: int) -> tuple[Tensor, Tensor]:
    """W, from importance f32 [N], at least 0, and the cell of each token.

    Returns:
        Weights f32 [K, N] and the positions of the rows i64 [K], ascending.
    """
    total, count, cell = importance.shape[0], max(cells) + 1, torch.tensor(cells)
    place = places(importance)
    inside = cell == torch.arange(count).unsqueeze(1)  # [G, N]
    left = (inside & (place >= kept - count)).sum(1) > 0
    low = place >= kept - left.sum()
    # Below any importance: a token that is not one of the cell's others.
    best = torch.where(inside & low, importance, -1.0)
    first = (best.argmax(1).unsqueeze(1) == torch.arange(total)) & (best.amax(1, True) >= 0)
    # What stays is before the first of each cell, and these before all others.
    order = torch.where(low, place + 2 * total, place) - total * (first.sum(0) > 0)
    positions = marked_indices(places(-order.float()) < kept, kept)
    group = cell.index_select(0, positions).unsqueeze(1) == cell
    share = (group & low) * (importance + SMALLEST_NORM)
    own = (positions.unsqueeze(1) == torch.arange(total)).float()
    mean = share / share.sum(1, keepdim=True).clamp(min=SMALLEST_NORM)
    return torch.where(low.index_select(0, positions).unsqueeze(1), mean, own), positions
