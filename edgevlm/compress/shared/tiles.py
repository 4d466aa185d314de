"""Where tokens of a tiled picture are, for methods that weigh tiles against each other.

Families order tiles in two ways: a grid for each tile, or one packed grid of all tiles. Both are
told apart here by the number of grids; the whole picture's own grid (the thumbnail) is beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import VisualShape, ascending, places

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
        (packed,) = grids
        parts = [regions(packed, shape.tiles)]
    return torch.cat([whole, *parts] if shape.global_view == "first" else [*parts, whole])


def regions(grid: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    """Tile in whose part of the picture each token of a grid lies, i64 [h*w]."""
    (height, width), (rows, columns) = grid, tiles
    row = torch.arange(height) * rows // height
    column = torch.arange(width) * columns // width
    return (row[:, None] * columns + column).flatten()


def on_tiles(whole: Tensor, shape: VisualShape) -> Tensor:
    """A score of the thumbnail f32 [h*w], resized (bilinear) to each token, f32 [N].

    The thumbnail's own tokens have the score itself.
    """
    first = shape.global_view == "first"
    grids = list(shape.grids)
    height, width = grids.pop(0 if first else -1)
    rows, columns = shape.tiles
    alone = len(grids) == rows * columns  # a grid for each tile, else one for all
    h, w = grids[0]
    size = (rows * h, columns * w) if alone else (h, w)
    down, across = _bilinear(height, size[0]), _bilinear(width, size[1])
    resized = down @ whole.reshape(height, width) @ across.transpose(0, 1)
    if alone:
        resized = resized.reshape(rows, h, columns, w).transpose(1, 2)
    parts = [whole, resized.flatten()]
    return torch.cat(parts if first else parts[::-1])


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
    return ascending((scores + FIRST * first).topk(kept).indices)


def _bilinear(size: int, wanted: int) -> Tensor:
    """Weights f32 [wanted, size] of linear interpolation between the centres of `size` cells."""
    weights = [[0.0] * size for _ in range(wanted)]
    for index, row in enumerate(weights):
        place = min(max((index + 0.5) * size / wanted - 0.5, 0.0), size - 1.0)
        below = min(int(place), max(size - 2, 0))
        row[below] += 1 - (place - below)
        row[min(below + 1, size - 1)] += place - below
    return torch.tensor(weights)


def _size(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
