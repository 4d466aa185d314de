"""Keep every N/K-th token: the baseline that covers the grid evenly, whatever the features are.

A grid of n tokens with budget k is cut into k runs of n / k tokens, in raster order, and the middle
of each run is kept:

    kept[i] = floor((2 i + 1) n / (2 k)),    i = 0 .. k - 1

K is split among several grids (tiles, frames) in proportion to their tokens.

Limits: where k is a multiple of the rows of a grid the kept tokens stand in columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import gather_tokens, keep_all
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = "baseline: uniform sampling in raster order"
SUMMARY = "keeps every N/K-th token of each grid"
FORMULA = "every N/K-th token"
STATIC = "constant positions, one gather"
DIFFERS = (
    "papers that have a uniform baseline differ in where they start and how they round; here it is"
    " the middle of each run of N/K tokens, rounded down"
)
COMPARED = "baseline"


class Method(TokensMethod):
    """Keeps K tokens at equal distances.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of grids and N.
        """
        kept = kept_tokens("strided", self.tokens, shape.tokens)
        grid_budgets("strided", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gather tokens at constant positions.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("strided", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("strided", features)
        check_shape("strided", features, shape)
        positions, start = [], 0
        budgets = grid_budgets("strided", shape, kept)
        for (height, width), budget in zip(shape.grids, budgets, strict=True):
            positions += [start + middle for middle in middles(height * width, budget)]
            start += height * width
        tokens = gather_tokens(features, torch.tensor(positions))
        return tokens, torch.tensor([positions], dtype=torch.int32)


def middles(total: int, kept: int) -> list[int]:
    """The middle of each of `kept` equal runs of `total` tokens, ascending and distinct."""
    return [(2 * i + 1) * total // (2 * kept) for i in range(kept)]
