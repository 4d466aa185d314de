"""Keep every N/K-th token: the baseline that covers the grid evenly and looks at nothing.

A grid of n tokens with budget k is cut into k runs of n / k tokens, in raster order, and the middle
of each run is kept:

    kept[i] = floor((2 i + 1) n / (2 k)),    i = 0 .. k - 1

Several grids (tiles, frames) share K in proportion to their tokens.

Limits: where k is a multiple of the rows of a grid the kept tokens stand in columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.graphs.selection import (
    VisualShape,
    check_shape,
    gather_rows,
    grid_budgets,
    keep_all,
    kept_tokens,
    square_shape,
)

SOURCE = "baseline: uniform sampling in raster order"
SUMMARY = "keeps every N/K-th token of each grid"
FORMULA = "every N/K-th token"
STATIC = "constant positions, one gather"
DIFFERS = (
    "papers that have a uniform baseline differ in where they start and how they round; here it is"
    " the middle of each run of N/K tokens, rounded down"
)


class Method:
    """Keeps K tokens at equal distances.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    signals: tuple[str, ...] = ()

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
        """Gather rows at constant places.

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
        drawn, start = [], 0
        budgets = grid_budgets("strided", shape, kept)
        for (height, width), budget in zip(shape.grids, budgets, strict=True):
            drawn += [start + place for place in middles(height * width, budget)]
            start += height * width
        return gather_rows(features, torch.tensor(drawn)), torch.tensor([drawn], dtype=torch.int32)


def middles(total: int, kept: int) -> list[int]:
    """The middle of each of `kept` equal runs of `total` tokens, ascending and distinct."""
    return [(2 * i + 1) * total // (2 * kept) for i in range(kept)]
