"""CATP, the first stage: the tokens that represent all others.

In each grid (picture, tile, frame) with its budget k of K, greedily add the token y that raises the
sum over x of max over the chosen y of s(x, y) most (facility location); s is the cosine of
features, mapped to 0 to 1.

Source: CATP (AAAI 2026), section 3. Limits: k steps one after the other, each O(n^2): for pictures
of a few hundred tokens; unrolled, six nodes a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import (
    ROUNDING,
    keep_all,
    marked_indices,
    select_tokens,
    unit_rows,
)
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = "CATP (Contextually Adaptive Token Pruning, AAAI 2026), section 3"
SUMMARY = (
    "CATP's first stage without its text: in each picture keeps the tokens that are nearest to all"
    " others"
)
FORMULA = "add argmax_y sum_x max(0, s(x, y) - max over kept of s(x, y')), K times"
STATIC = "K steps over [n, n], unrolled"
DIFFERS = (
    "from the paper alone, its code is not public: the first stage without its second term, the"
    " similarity to the words beside the picture, for the question is not known when tokens are"
    " reduced; the second stage, inside the language model, ranks the pictures of examples, and a"
    " prompt here has none"
)
COMPARED = "paper's equations"


class Method(TokensMethod):
    """Keeps K of N tokens.

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
        return select_tokens(features, torch.cat(chosen))


def cover(features: Tensor, kept: int) -> Tensor:
    """Indices i64 [kept], ascending, of the tokens of features [n, C] that cover the rest best."""
    unit = unit_rows(features)
    cosine = (unit @ unit.transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    similarity = (cosine + 1.0) / 2.0  # [n, n]
    number = torch.arange(unit.shape[0])
    covered, chosen = torch.zeros(unit.shape[0]), torch.zeros(unit.shape[0], dtype=torch.bool)
    for _ in range(kept):
        gain = (similarity - covered).clamp(min=0.0).sum(1)
        best = torch.where(chosen, -1.0, gain).argmax(0, keepdim=True)
        chosen = chosen | (number == best)
        covered = torch.maximum(covered, similarity.index_select(0, best)[0])
    return marked_indices(chosen, kept)
