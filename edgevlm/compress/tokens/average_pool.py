"""Average the tokens of each cell of a coarser grid: the baseline that uses all tokens.

    tokens K -> a budget for each grid -> bands of rows -> cells of a band -> W [K, N] @ features

A grid [h, w] with budget k has about sqrt(k * h / w) bands of equal height, so that cells are near
square, and its k cells are split evenly among the bands. Any k up to h * w works: a token on the
border of two cells counts in both by the area it has in each.

If k = a * b where a divides h, b divides w and no side of a cell is more than twice the other,
there are a bands of b cells: `torch.nn.functional.avg_pool2d` with kernel (h / a, w / b).

With `frames` neighbouring frames of a clip are averaged first, and K is spread over the groups, as
STORM pools behind its temporal encoder (arXiv 2503.04130): `avg_pool3d` where all divides.

A cell is at least one token high and wide, so the tokens at the centres differ and ascend.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import keep_all
from edgevlm.graphs.visual_shape import VisualShape, check_shape, clip_frames, square_shape

SOURCE = "baseline: torch.nn.functional.avg_pool2d, with cells of fractional area for any K"
SUMMARY = "averages the tokens of K near-square cells of the grid, or of neighbouring frames"
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
        frames: Neighbouring frames of a clip that are averaged; 1 averages inside frames alone.

    Raises:
        ValueError: If `frames` is below 1.
    """

    def __init__(self, tokens: int | None = None, *, frames: int = 1) -> None:
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        self.tokens, self.frames = tokens, frames

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of grids or groups and N, or frames of a still
                picture should be averaged.
        """
        kept = kept_tokens("average_pool", self.tokens, shape.tokens)
        if kept < shape.tokens:
            self._budgets(shape, kept)
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
        budgets = self._budgets(shape, self.plan(shape))
        weights, centres = cells(shape.grids[: len(budgets)], budgets)
        if self.frames > 1:
            weights, centres = over_frames(weights, centres, shape, self.frames)
        tokens = torch.matmul(torch.from_numpy(weights), features)
        return tokens, torch.tensor([centres], dtype=torch.int32)

    def _budgets(self, shape: VisualShape, kept: int) -> tuple[int, ...]:
        """Tokens of each grid, or of each group of frames."""
        if self.frames == 1:
            return grid_budgets("average_pool", shape, kept)
        frames, tokens = clip_frames("average_pool", shape)
        groups = -(-frames // self.frames)
        if kept > groups * tokens:
            raise PlanError(
                f"average_pool: got tokens={kept}, expected {groups} to {groups * tokens} of the"
                f" {groups} groups of {self.frames} frames; keep fewer tokens or take frames=1"
            )
        return grid_budgets("average_pool", replace(shape, grids=shape.grids[:groups]), kept)


def over_frames(
    weights: NDArray[np.float32], centres: tuple[int, ...], shape: VisualShape, group: int
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Cells of groups of frames, each the mean of its frames.

    Args:
        weights: Cells of groups as if each were a frame, f32 [K, G*N].
        centres: Their K centres.
        shape: The frames.
        group: Frames of a group; the last has those that are left.

    Returns:
        Weights f32 [K, F*N], and centres in the frame at the middle of each group.
    """
    tokens = shape.tokens // shape.frames
    starts = range(0, shape.frames, group)
    sizes = [min(group, shape.frames - start) for start in starts]
    blocks = [
        weights[:, i * tokens : (i + 1) * tokens] / size
        for i, size in enumerate(sizes)
        for _ in range(size)
    ]
    middle = [(start + size // 2) * tokens for start, size in zip(starts, sizes, strict=True)]
    moved = tuple(middle[centre // tokens] + centre % tokens for centre in centres)
    return np.concatenate(blocks, 1), moved


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
