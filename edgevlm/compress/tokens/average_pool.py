"""Average the tokens of each cell of a coarser grid: the baseline that uses all tokens.

    tokens K -> a budget for each grid -> bands of rows -> cells of a band -> W [K, N] @ features

A grid [h, w] with budget k has about sqrt(k * h / w) bands of equal height, so that cells are near
square, and its k cells are split evenly among the bands. Any k up to h * w works: a token on the
border of two cells counts in both by the area it has in each.

If k = a * b where a divides h, b divides w and no side of a cell is more than twice the other,
there are a bands of b cells: `torch.nn.functional.avg_pool2d` with kernel (h / a, w / b).

A cell is at least one token high and wide, so the tokens at the centres differ and ascend.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import keep_all
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = "baseline: torch.nn.functional.avg_pool2d, with cells of fractional area for any K"
SUMMARY = "averages the tokens of K near-square cells of the grid"
FORMULA = "y[i, j] = mean of the cell (i, j) of a smaller grid"
STATIC = "one constant matrix [K, N]"
DIFFERS = (
    "equals the original where the cells divide the grid; elsewhere a border token is in two cells"
)
COMPARED = "baseline"


class Method(TokensMethod):
    """Averages the grid to K tokens.

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
        kept = kept_tokens("average_pool", self.tokens, shape.tokens)
        grid_budgets("average_pool", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multiply by the constant matrix of cell averages.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Averages f32 [1, K, C], and the position of the token at each cell's centre i32 [1, K],
            ascending.

        Raises:
            PlanError: If K or N does not fit the grids.
        """
        if kept_tokens("average_pool", self.tokens, features.shape[1]) == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("average_pool", features)
        check_shape("average_pool", features, shape)
        budgets = grid_budgets("average_pool", shape, self.plan(shape))
        weights, centres = cells(shape.grids, budgets)
        tokens = torch.matmul(torch.from_numpy(weights), features)
        return tokens, torch.tensor([centres], dtype=torch.int32)


@cache
def cells(
    grids: tuple[tuple[int, int], ...], budgets: tuple[int, ...]
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Weights of all cells, f32 [K, N], the sum of each row 1, and the K centre positions."""
    total = sum(h * w for h, w in grids)
    weights: list[NDArray[np.float64]] = []
    centres: list[int] = []
    start = 0
    for (h, w), kept in zip(grids, budgets, strict=True):
        bands = band_count(h, w, kept)
        for band, vertical in enumerate(_overlaps(h, bands)):
            count = kept * (band + 1) // bands - kept * band // bands
            for cell, horizontal in enumerate(_overlaps(w, count)):
                of_cell = np.zeros(total)
                of_cell[start : start + h * w] = np.outer(vertical, horizontal).ravel()
                weights.append(of_cell)
                centres.append(start + _centre(h, bands, band) * w + _centre(w, count, cell))
        start += h * w
    return np.stack(weights).astype(np.float32), tuple(centres)


def band_count(h: int, w: int, kept: int) -> int:
    """How many bands of grid rows the `kept` cells of a grid [h, w] make."""
    exact = [a for a in range(1, h + 1) if h % a == 0 and kept % a == 0 and w % (kept // a) == 0]

    def stretch(a: int) -> Fraction:
        ratio = Fraction(a * a * w, kept * h)  # width w * a / kept by height h / a
        return max(ratio, 1 / ratio)

    if exact and stretch(best := min(exact, key=stretch)) <= 2:
        return best
    # No band may hold more than w cells, or cells would be narrower than a token.
    return max(-(-kept // w), min(h, kept, round(math.sqrt(kept * h / w))))


def _overlaps(length: int, parts: int) -> NDArray[np.float64]:
    """Weight of each token in each of `parts` equal intervals of a side: [parts, length]."""
    edges = np.arange(parts + 1) * length / parts
    tokens = np.arange(length)
    low = np.maximum(edges[:-1, None], tokens)
    high = np.minimum(edges[1:, None], tokens + 1)
    weights: NDArray[np.float64] = np.maximum(high - low, 0) * parts / length
    return weights


def _centre(length: int, parts: int, part: int) -> int:
    """Token in the middle of an interval; on a border, the later one."""
    return (2 * part + 1) * length // (2 * parts)
