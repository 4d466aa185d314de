"""Where tokens of a tiled picture are, for methods that weigh tiles against each other.

Families order tiles in two ways: a grid for each tile, or one packed grid of all tiles. Both are
told apart here by the number of grids; the whole picture's own grid (the thumbnail) is beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress._primitives import VisualShape, places
from edgevlm.errors import PlanError

# Above any score: attention and its sums are at most a few.
FIRST = 1e4


def thumbnail(method: str, shape: VisualShape) -> tuple[int, tuple[int, int]]:
    """First token and grid (h, w) of the thumbnail.

    Raises:
        PlanError: If the picture is not tiled, or has no thumbnail.
    """
    if not shape.global_view:
        raise PlanError(f"{method}: the picture has no tiles beside it; export with --tiles RxC")
    index = 0 if shape.global_view == "first" else len(shape.grids) - 1
    return sum(h * w for h, w in shape.grids[:index]), shape.grids[index]


def tile_of(shape: VisualShape) -> Tensor:
    """Tile of each token, i64 [N]: 0 to R*C - 1 in raster order, -1 in the thumbnail."""
    rows, columns = shape.tiles
    grids = list(shape.grids)
    whole = torch.full((_size(grids.pop(0 if shape.global_view == "first" else -1)),), -1)
    if len(grids) == rows * columns:
        parts = [torch.full((_size(grid),), index) for index, grid in enumerate(grids)]
    else:
        ((height, width),) = grids
        row = torch.arange(height) * rows // height
        column = torch.arange(width) * columns // width
        parts = [(row[:, None] * columns + column).flatten()]
    return torch.cat([whole, *parts] if shape.global_view == "first" else [*parts, whole])


def regions(grid: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    """Tile whose part of the picture each thumbnail token shows, i64 [h*w]."""
    (height, width), (rows, columns) = grid, tiles
    row = torch.arange(height) * rows // height
    column = torch.arange(width) * columns // width
    return (row[:, None] * columns + column).flatten()


def share(weights: Tensor, total: int) -> Tensor:
    """Integers i64 [P] in proportion to f32 `weights` [P], with the sum `total`.

    Rounded down, and one more for the largest remainders; of equals the first.
    """
    wanted = weights / weights.sum() * total
    # A share that is an integer but for rounding must not lose one.
    down = (wanted + 1e-4).floor()
    missing = total - down.sum()
    return (down + (places(wanted - down) < missing)).to(torch.int64)


def keep_best(scores: Tensor, groups: Tensor, budgets: Tensor, kept: int) -> Tensor:
    """Indices i64 [K], ascending: the best tokens of each group up to its budget.

    Args:
        scores: f32 [N], at most a few.
        groups: i64 [N], the group of each token; constant.
        budgets: i64 [G]. Where a group has fewer tokens than its budget, the best of all other
            tokens take the rest, so that always K are kept.
        kept: K, the sum of the budgets.
    """
    better = scores.unsqueeze(0) > scores.unsqueeze(1)  # [N, N], column better than row
    number = torch.arange(scores.shape[0])
    equal = (scores.unsqueeze(0) == scores.unsqueeze(1)) & (number < number.unsqueeze(1))
    same = groups.unsqueeze(0) == groups.unsqueeze(1)
    rank = ((better | equal) & same).sum(1)
    first = rank < budgets.index_select(0, groups)
    chosen = (scores + FIRST * first).topk(kept).indices
    return chosen.topk(kept, largest=False).values


def _size(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
