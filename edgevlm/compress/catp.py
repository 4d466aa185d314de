"""CATP, the first stage: the tokens that stand best for all others of their picture.

In each grid (picture, tile, frame) with its share k of K, greedily: add the token y that raises
sum over x of max over the chosen y of s(x, y) most (facility location); s is the cosine of
features, moved to 0 to 1.

Source: CATP (AAAI 2026), section 3, first stage. Limits: k steps one after the other, each O(n^2):
for pictures of a few hundred tokens; unrolled, six nodes a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress._primitives import (
    ROUNDING,
    VisualShape,
    check_shape,
    grid_budgets,
    keep_all,
    keep_rows,
    kept_tokens,
    marked_indices,
    square_shape,
    unit_rows,
)

SOURCE = "CATP (Contextually Adaptive Token Pruning, AAAI 2026), section 3, first stage"
SUMMARY = "keeps the tokens that are nearest to all others, one after the other (facility location)"
FORMULA = "add argmax_y sum_x max(0, s(x, y) - max over kept of s(x, y')), K times"
STATIC = "K steps over [n, n], unrolled"
DIFFERS = (
    "from the paper alone, its code is not public: the first stage without its second term, the"
    " likeness to the words beside the picture, for the question is not known when tokens are"
    " reduced; the second stage, inside the language model, is not here"
)


class Method:
    """Keeps K of N tokens.

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
        kept = kept_tokens("catp", self.tokens, shape.tokens)
        grid_budgets("catp", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Select in each grid, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("catp", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("catp", features)
        check_shape("catp", features, shape)
        chosen, start = [], 0
        for grid, budget in zip(shape.grids, grid_budgets("catp", shape, kept), strict=True):
            end = start + grid[0] * grid[1]
            chosen.append(cover(features[0, start:end], budget) + start)
            start = end
        return keep_rows(features, torch.cat(chosen))


def cover(features: Tensor, kept: int) -> Tensor:
    """Indices i64 [kept], ascending, of the tokens of features [n, C] that cover the rest best."""
    rows = unit_rows(features)
    cosine = (rows @ rows.transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    alike = (cosine + 1.0) / 2.0  # [n, n]
    number = torch.arange(rows.shape[0])
    covered, chosen = torch.zeros(rows.shape[0]), torch.zeros(rows.shape[0], dtype=torch.bool)
    for _ in range(kept):
        gain = (alike - covered).clamp(min=0.0).sum(1)
        best = torch.where(chosen, -1.0, gain).argmax(0, keepdim=True)
        chosen = chosen | (number == best)
        covered = torch.maximum(covered, alike.index_select(0, best)[0])
    return marked_indices(chosen, kept)
