"""Which tokens belong to which tile, for methods that treat or weigh each tile by itself.

Families order tiles in two ways: a grid for each tile, or one packed grid of all tiles. The number
of grids tells which; the grid of the whole picture (the thumbnail) is beside them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import ascending, in_raster_order, ranks
from edgevlm.graphs.visual_shape import VisualShape

# Where the tokens of a view are: a run of them, or their positions i64 [n].
Place = slice | Tensor
# Added to the score of a token within its tile's budget, so that it comes before all others:
# attention and its sums are at most a few.
WITHIN_BUDGET = 1e4


def split_views(shape: VisualShape) -> tuple[VisualShape, list[Place]]:
    """The shape with a grid for each view, and where the tokens of each are, in its raster order.

    A packed grid is taken apart into its tiles, since most methods were made for one view.
    """
    grids, places, start = list[tuple[int, int]](), list[Place](), 0
    separate = len(shape.grids) - 1 == shape.tiles[0] * shape.tiles[1]
    whole = 0 if shape.global_view == "first" else len(shape.grids) - 1
    for index, grid in enumerate(shape.grids):
        size = grid[0] * grid[1]
        if not shape.global_view or separate or index == whole:
            grids.append(grid)
            places.append(slice(start, start + size))
        else:
            height, width = grid[0] // shape.tiles[0], grid[1] // shape.tiles[1]
            for corner in range(start, start + size, height * grid[1]):
                for left in range(corner, corner + grid[1], width):
                    lines = [left + line * grid[1] for line in range(height)]
                    grids.append((height, width))
                    places.append(torch.tensor([i + x for i in lines for x in range(width)]))
        start += size
    return replace(shape, grids=tuple(grids), tiles=(1, 1), global_view="", padding=(0, 0)), places


def tokens_at(x: Tensor, place: Place) -> Tensor:
    """The tokens of a view [1, n, …] of a tensor of all tokens [1, N, …]."""
    return x.index_select(1, place) if isinstance(place, Tensor) else x[:, place]


def rows_at(x: Tensor, place: Place) -> Tensor:
    """The tokens of a view as rows [n, …] of a tensor of all tokens [1, N, …]."""
    return x[0].index_select(0, place) if isinstance(place, Tensor) else x[0, place]


def positions_at(place: Place, indices: Tensor) -> Tensor:
    """Positions among all tokens of tokens i64 [k] of a view."""
    return place.index_select(0, indices) if isinstance(place, Tensor) else indices + place.start


def joined(places: list[Place], positions: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Positions of all views i64 [K], ascending, and their order i64 [K] where it changed.

    Args:
        places: Where the tokens of each view are.
        positions: Of each view, ascending in it.
    """
    every = torch.cat(positions)
    if not any(isinstance(place, Tensor) for place in places):
        return every, None
    ordered, order = in_raster_order(every, torch.arange(every.shape[0]))
    return ordered, order


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
    """Tile of each token, i64 [N]: 0 to R*C - 1 in raster order, R*C in the thumbnail."""
    height, width = _thumbnail(shape)
    of_tiles = regions(_all_tiles(shape), shape.tiles).reshape(_all_tiles(shape))
    return _beside(torch.full((height * width,), shape.tiles[0] * shape.tiles[1]), of_tiles, shape)


def regions(grid: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    """Tile that shows the part of the picture in which each token of a grid lies, i64 [h*w].

    All tiles have as many rows and columns; the last ones have what is left over, too.
    """
    row, column = (
        [min(i // max(size // count, 1), count - 1) for i in range(size)]
        for size, count in zip(grid, tiles, strict=True)
    )
    return torch.tensor([i * tiles[1] + j for i in row for j in column])


def shown_tokens(shape: VisualShape) -> int:
    """Tokens that show something: all but those of the padding."""
    (height, width), (down, across) = _all_tiles(shape), shape.padding
    return shape.tokens - height * width + (height - 2 * down) * (width - 2 * across)


def shown(shape: VisualShape) -> Tensor:
    """Which tokens show something, bool [N]; all of the thumbnail do."""
    inside = [
        (torch.arange(size) >= lost) & (torch.arange(size) < size - lost)
        for size, lost in zip(_all_tiles(shape), shape.padding, strict=True)
    ]
    height, width = _thumbnail(shape)
    return _beside(torch.ones(height * width) > 0, inside[0][:, None] & inside[1], shape)


def resize_to_tiles(scores: Tensor, shape: VisualShape) -> Tensor:
    """The thumbnail's scores f32 [h*w], resized (bilinear) to all tokens, f32 [N].

    The thumbnail's own tokens keep their scores, and padding gets 0.
    """
    height, width = _thumbnail(shape)
    wanted, lost = _all_tiles(shape), shape.padding
    down, across = _bilinear(height, wanted[0], lost[0]), _bilinear(width, wanted[1], lost[1])
    resized = down @ scores.reshape(height, width) @ across.transpose(0, 1)
    return _beside(scores, resized, shape)


def split_budget(weights: Tensor, total: int) -> Tensor:
    """Integers i64 [P] in proportion to f32 `weights` [P], with the sum `total`.

    Rounded down, and one more for the largest remainders; of equals the first.
    """
    exact = weights / weights.sum() * total
    # A budget that is an integer but for rounding must not lose one.
    down = (exact + 1e-4).floor()
    missing = total - down.sum()
    return (down + (ranks(exact - down) < missing)).to(torch.int64)


def largest_of_groups(scores: Tensor, groups: Tensor, budgets: Tensor, kept: int) -> Tensor:
    """Indices i64 [K], ascending: the tokens of each group with the largest scores, by its budget.

    Args:
        scores: f32 [N], at most a few.
        groups: i64 [N], the group of each token; constant.
        budgets: i64 [G]. Where a group has fewer tokens than its budget, the largest scores of all
            other tokens take the rest, so that always K are kept.
        kept: K, the sum of the budgets.
    """
    larger = scores.unsqueeze(0) > scores.unsqueeze(1)  # [N, N], column larger than row
    number = torch.arange(scores.shape[0])
    equal = (scores.unsqueeze(0) == scores.unsqueeze(1)) & (number < number.unsqueeze(1))
    same = groups.unsqueeze(0) == groups.unsqueeze(1)
    rank = ((larger | equal) & same).sum(1)
    within = rank < budgets.index_select(0, groups)
    return ascending((scores + WITHIN_BUDGET * within).topk(kept).indices)


def _thumbnail(shape: VisualShape) -> tuple[int, int]:
    """The grid (h, w) of the whole picture."""
    return shape.grids[0 if shape.global_view == "first" else -1]


def _all_tiles(shape: VisualShape) -> tuple[int, int]:
    """The grid (h, w) of all tiles together."""
    height, width = shape.grids[-1 if shape.global_view == "first" else 0]
    rows, columns = shape.tiles if _separate(shape) else (1, 1)
    return rows * height, columns * width


def _separate(shape: VisualShape) -> bool:
    """Whether each tile has a grid, else there is one for all."""
    return len(shape.grids) - 1 == shape.tiles[0] * shape.tiles[1]


def _beside(of_thumbnail: Tensor, of_tiles: Tensor, shape: VisualShape) -> Tensor:
    """Values of the thumbnail's tokens [h*w] and of all tiles [H, W] in the order of tokens [N]."""
    if _separate(shape):
        rows, columns = shape.tiles
        height, width = (
            size // count for size, count in zip(of_tiles.shape, shape.tiles, strict=True)
        )
        of_tiles = of_tiles.reshape(rows, height, columns, width).transpose(1, 2)
    parts = [of_thumbnail, of_tiles.flatten()]
    return torch.cat(parts if shape.global_view == "first" else parts[::-1])


def _bilinear(size: int, wanted: int, lost: int) -> Tensor:
    """Weights f32 [wanted, size] of linear interpolation between the centres of `size` cells.

    The first and the last `lost` rows are zero: the cells are resized to what is between them.
    """
    weights = [[0.0] * size for _ in range(wanted)]
    used = wanted - 2 * lost
    for index, row in enumerate(weights[lost : wanted - lost]):
        centre = min(max((index + 0.5) * size / used - 0.5, 0.0), size - 1.0)
        below = min(int(centre), max(size - 2, 0))
        row[below] += 1 - (centre - below)
        row[min(below + 1, size - 1)] += centre - below
    return torch.tensor(weights)
