"""What the methods share: the shape they plan with, budgets, and selection without sort.

Each function is made of operators that every target has: top-k, gather, compare, running sum,
matmul. Shapes are constants. `sort`, `scatter` and boolean indexing are missing or wrong on at
least one target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm.errors import PlanError

# The smallest norm to divide by: a row of zeros stays zero and never becomes NaN.
SMALLEST_NORM = 1e-12
# Cosines closer to 1 than this are 1. A float32 dot product of unit rows is off by 1e-7 to 4e-6
# (C = 64 to 4096), and not by the same amount in each engine: copies of a token (a still video)
# would be ranked by rounding. Made equal, they tie and the lowest index wins everywhere.
ROUNDING = 4e-6


@dataclass(frozen=True)
class VisualShape:
    """What a method knows before any graph exists.

    Attributes:
        grids: Token grid (h, w) of each tile, frame or packed image, in order.
        channels: C.
        tiles: Rows and columns of tiles that the image was cut into; (1, 1) if it was not.
        global_view: `first` or `last` if one of the grids is the whole picture beside its tiles.
    """

    grids: tuple[tuple[int, int], ...]
    channels: int
    tiles: tuple[int, int] = (1, 1)
    global_view: str = ""

    @property
    def tokens(self) -> int:
        """N: tokens of all grids."""
        return sum(h * w for h, w in self.grids)


def square_shape(method: str, features: Tensor) -> VisualShape:
    """The shape of features [1, N, C] that are one square grid.

    Raises:
        PlanError: If N is not a square.
    """
    total, channels = features.shape[1], features.shape[2]
    side = math.isqrt(total)
    if side * side != total:
        raise PlanError(
            f"{method}: got {total} tokens and no grid, expected a square number;"
            " pass shape=VisualShape(grids, channels)"
        )
    return VisualShape(((side, side),), channels)


def check_shape(method: str, features: Tensor, shape: VisualShape) -> None:
    """Refuse features [1, N, C] that do not belong to `shape`.

    Raises:
        PlanError: If N differs.
    """
    if features.shape[1] != shape.tokens:
        raise PlanError(
            f"{method}: got {features.shape[1]} tokens, expected {shape.tokens} from the grids"
            f" {list(shape.grids)}; pass the shape that these features have"
        )


def kept_tokens(method: str, tokens: int | None, total: int) -> int:
    """K: how many of `total` tokens are kept; None keeps all.

    Raises:
        PlanError: If `tokens` is not between 1 and `total`.
    """
    if tokens is None:
        return total
    if not 1 <= tokens <= total:
        raise PlanError(
            f"{method}: got tokens={tokens}, expected 1 to {total} (the visual tokens there are);"
            f" choose a number in that range"
        )
    return tokens


def grid_budgets(method: str, shape: VisualShape, kept: int) -> tuple[int, ...]:
    """Share `kept` tokens among the grids in proportion to their tokens.

    Largest remainder: each grid gets its share rounded down, then the grids that are furthest below
    their share get one more; of equals the first. No grid gets less than one token.

    Raises:
        PlanError: If there are fewer tokens than grids.
    """
    if kept < len(shape.grids):
        raise PlanError(
            f"{method}: got tokens={kept} for {len(shape.grids)} grids (tiles or frames), expected"
            " at least one each; keep more tokens or use fewer tiles or frames"
        )
    sizes, total = [h * w for h, w in shape.grids], shape.tokens
    budgets = [max(1, kept * size // total) for size in sizes]
    while sum(budgets) != kept:
        # Integers, in units of 1 / total: how far each grid is below its share.
        below = [kept * size - budget * total for size, budget in zip(sizes, budgets, strict=True)]
        if sum(budgets) < kept:
            budgets[below.index(max(below))] += 1
        else:
            above = [-b if n > 1 else -math.inf for b, n in zip(below, budgets, strict=True)]
            budgets[above.index(max(above))] -= 1
    return tuple(budgets)


def keep_all(features: Tensor) -> tuple[Tensor, Tensor]:
    """Zero compression: the same tensor [1, N, C], and positions 0 to N - 1 as i32 [1, N]."""
    return features, torch.arange(features.shape[1], dtype=torch.int32).unsqueeze(0)


def gather_rows(features: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` [K] of features [1, N, C], as [1, K, C]."""
    return features.index_select(1, indices)


def keep_rows(features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """What a method that only selects gives: tokens [1, K, C] and positions i32 [1, K].

    Args:
        features: f32 [1, N, C].
        positions: i64 [K], ascending.
    """
    return gather_rows(features, positions), positions.to(torch.int32).unsqueeze(0)


def after_first(
    x: Tensor, size: Tensor, rows: Tensor, sizes: Tensor, place: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What merging of all tokens but the first made, with the first before it as it was.

    Args:
        x: Tokens before the merging, f32 [n, D].
        size: Patches that each stands for, f32 [n, 1].
        rows: Tokens after it, f32 [k, D].
        sizes: Patches that each stands for, f32 [k, 1].
        place: Which row each but the first is part of, i64 [n - 1].
    """
    first = torch.zeros(1, dtype=torch.int64)
    return torch.cat([x[:1], rows]), torch.cat([size[:1], sizes]), torch.cat([first, place + 1])


def ascending(indices: Tensor) -> Tensor:
    """Distinct integers [..., K] in ascending order, by top-k alone."""
    return indices.topk(indices.shape[-1], dim=-1, largest=False).values


def in_raster_order(places: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """Distinct places i64 [K] in ascending order, and rows [K, …] in the order of their places."""
    order = places.topk(places.shape[0], largest=False).indices
    return tuple(tensor.index_select(0, order) for tensor in (places, *rows))


def places(scores: Tensor) -> Tensor:
    """Place of each score [..., N] in descending order, i64 [..., N]; 0 is the largest.

    Equal scores keep their order. Top-k breaks ties differently in PyTorch and in each engine, so
    a choice that must not flip counts instead. O(N^2) compares.
    """
    number = torch.arange(scores.shape[-1])
    other, own = scores.unsqueeze(-2), scores.unsqueeze(-1)
    earlier = number < number.unsqueeze(-1)  # [N, N], column before row
    return ((other > own) | ((other == own) & earlier)).sum(-1)


def unit_rows(features: Tensor) -> Tensor:
    """Rows f32 [..., N, C] divided by their length."""
    return features / features.square().sum(-1, keepdim=True).sqrt().clamp(min=SMALLEST_NORM)


def marked(indices: Tensor, total: int) -> Tensor:
    """Which of `total` tokens are among indices [K]: bool [N]. O(N K) compares."""
    return (torch.arange(total).unsqueeze(1) == indices).sum(1) > 0


def marked_indices(mask: Tensor, count: int) -> Tensor:
    """Indices i64 [count] of a mask bool [N] that marks `count` tokens, ascending."""
    total = mask.shape[0]
    # An unmarked token gets an index past the end.
    return torch.where(mask, torch.arange(total), total).topk(count, largest=False).values


def descending(scores: Tensor) -> Tensor:
    """Indices i64 [N] of scores [N], the largest first; equal scores keep their order."""
    return places(scores).topk(scores.shape[0], largest=False).indices


def largest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest of each row of scores [..., N]: bool; of equals the first.

    Unlike top-k the choice among equals is the same in each engine. O(N) beside the top-k.
    """
    least = scores.topk(count, dim=-1).values[..., -1:]
    above, equal = scores > least, scores == least
    free = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.to(torch.int64).cumsum(-1) <= free))
