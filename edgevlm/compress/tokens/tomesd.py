"""ToMe for Stable Diffusion: one token of each cell stays, the most similar others merge into it.

In each grid (tile, frame) with its budget k of K:

 1. The top left token of each whole cell of s x s is a destination, all others are candidates; s
    is the smallest, from 2 on, with no more cells than k.
 2. Bipartite matching (`graphs/matching.py`) by the cosine of features merges n - k candidates; a
    destination becomes the plain mean of itself and the tokens that merge into it.

Destinations are spread over the picture, so that no part of it is without a token. One round.

Source: ToMe for Stable Diffusion (arXiv 2303.17604), dbolya/tomesd. Limits: where k is little more
than the number of cells, nearly every candidate merges, whether it is similar or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import Matching, match
from edgevlm.graphs.selection import in_raster_order, keep_all
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = (
    "ToMe for Stable Diffusion (arXiv 2303.17604), section 4, dbolya/tomesd@27a14a3"
    " tomesd/merge.py: bipartite_soft_matching_random2d"
)
SUMMARY = (
    "the merging of ToMe for Stable Diffusion, once before a language model (original: in a"
    " denoiser): keeps one token of each cell of a grid, merges the most similar others into them"
)
FORMULA = (
    "mean of the tokens that merge by argmax cos(x, first of each s x s cell), N - K best pairs"
)
STATIC = "a matching and one product, once"
DIFFERS = (
    "same tokens as the original with no_rand=True, in raster order of destinations (original:"
    " unmerged tokens first); the original merges and unmerges inside each block of a denoiser,"
    " here it is applied once, before the language model, and nothing is unmerged. The side of a"
    " cell follows from K (original: 2, with at most 3/4 of the tokens merged)"
)
COMPARED = "vectors"


class Method(TokensMethod):
    """Merges N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        side: Side s of a cell in tokens; None is the smallest that K allows.

    Raises:
        ValueError: If `side` is below 2.
    """

    def __init__(self, tokens: int | None = None, *, side: int | None = None) -> None:
        if side is not None and side < 2:
            raise ValueError(f"side is that of a cell in tokens, at least 2, got {side}")
        self.tokens = tokens
        self.side = side

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of grids and N, or is less than the cells.
        """
        kept = kept_tokens("tomesd", self.tokens, shape.tokens)
        if kept < shape.tokens:
            for grid, budget in zip(shape.grids, grid_budgets("tomesd", shape, kept), strict=True):
                self._side(grid, budget)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge in each grid.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Means f32 [1, K, C], and the position of the token that each is merged into i32 [1, K],
            ascending.
        """
        kept = kept_tokens("tomesd", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("tomesd", features)
        check_shape("tomesd", features, shape)
        tokens, positions, start = [], [], 0
        budgets = grid_budgets("tomesd", shape, kept)
        for grid, budget in zip(shape.grids, budgets, strict=True):
            end = start + grid[0] * grid[1]
            x, side = features[0, start:end], self._side(grid, budget)
            matching = match_cells(x, grid, (side, side), x.shape[0] - budget)
            merged, _ = matching.merge(x, torch.ones(x.shape[0], 1))
            left, merged = in_raster_order(matching.remaining, merged)
            tokens.append(merged)
            positions.append(left + start)
            start = end
        return torch.cat(tokens).unsqueeze(0), torch.cat(positions).to(torch.int32).unsqueeze(0)

    def _side(self, grid: tuple[int, int], budget: int) -> int:
        side = self.side or 2
        while self.side is None and _cells(grid, side) > budget:
            side += 1
        if _cells(grid, side) == 0:
            raise PlanError(
                f"tomesd: no cell of side {side} fits a grid {grid[0]}x{grid[1]}; keep more tokens"
            )
        if _cells(grid, side) > budget:
            raise PlanError(
                f"tomesd: side={side} makes {_cells(grid, side)} cells of a grid"
                f" {grid[0]}x{grid[1]} that keeps {budget} tokens; take a larger side or keep more"
            )
        return side


def match_cells(x: Tensor, grid: tuple[int, int], cell: tuple[int, int], r: int) -> Matching:
    """Match the tokens [h*w, C] of a grid (h, w) with the first token of each whole cell; r merge.

    Tokens at the right and bottom that are in no whole cell are candidates.
    """
    (height, width), (down, across) = grid, cell
    rows = range(0, height // down * down, down)
    columns = range(0, width // across * across, across)
    destinations = [row * width + column for row in rows for column in columns]
    candidates = sorted(set(range(height * width)) - set(destinations))
    return match(x, candidates, destinations, r)


def _cells(grid: tuple[int, int], side: int) -> int:
    return (grid[0] // side) * (grid[1] // side)
