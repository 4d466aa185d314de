"""AnyRes packing of the LLaVA families: a base image, then one grid of tiles with newlines.

The grid is fixed by the recipe and the picture fills it, so nothing is unpadded. Each row of the
grid is closed by the learned newline, an extra row of the embedding table; when tokens are removed
one newline at the end remains, unless the method keeps rows.

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/ (LLaVA 1.6).
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import scaled
from edgevlm.graphs.parts import DecoderSpec
from edgevlm.models.family import TABLE_ROW
from edgevlm.models.shared.preprocessing import check_view
from edgevlm.models.shared.views import image_of
from edgevlm.recipe import Recipe

NEWLINE = LayoutItem(TABLE_ROW, start=0)


class Pack(nn.Module):
    """Tiles to one raster grid: [1, (1 + R*C)*h*w, C], base image first -> [1, same, C]."""

    def __init__(self, rows: int, columns: int, side: int) -> None:
        super().__init__()
        self.rows, self.columns, self.side = rows, columns, side

    def forward(self, x: Tensor) -> Tensor:
        n = self.side * self.side
        base, tiles = x[:, :n], x[0, n:]
        grid = tiles.view(self.rows, self.columns, self.side, self.side, -1).transpose(1, 2)
        return torch.cat((base, grid.reshape(1, -1, x.shape[-1])), dim=1)


class PackLines(nn.Module):
    """Views whose rows end with a newline, as one raster grid of which each row has one.

    [1, P*side*(side+1), E], base image first -> [1, N, E]. The base image keeps none, or alone one
    at its end.
    """

    def __init__(self, image: ImageSpec, side: int) -> None:
        super().__init__()
        self.rows, self.columns, self.side = image.rows, image.columns, side
        self.tiled = image.views > 1

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.rows}, {self.columns}, {self.side}, {self.tiled}"

    def forward(self, x: Tensor) -> Tensor:
        side, width = self.side, x.shape[-1]
        lines = x[0].reshape(-1, side, side + 1, width)
        base = lines[0, :, :side].reshape(1, side * side, width)
        if not self.tiled:
            return torch.cat((base, x[:, -1:]), dim=1)
        grid = lines[1:].reshape(self.rows, self.columns, side, side + 1, width).transpose(1, 2)
        words = grid[..., :side, :].reshape(self.rows * side, -1, width)
        ends = grid[:, :, -1, side:].reshape(self.rows * side, 1, width)
        return torch.cat((base, torch.cat((words, ends), dim=1).reshape(1, -1, width)), dim=1)


def newline_rows(side: int, rows: int, columns: int) -> tuple[str | LayoutItem, ...]:
    """The sequence of a packed image: base image, then each row of the grid with a newline."""
    base, width = side * side, columns * side
    items: list[str | LayoutItem] = [LayoutItem("visual", start=0, stop=base)]
    for row in range(rows * side):
        start = base + row * width
        items += [LayoutItem("visual", start=start, stop=start + width), NEWLINE]
    return tuple(items)


def base_and_tile(side: int, keeps_class: bool = False) -> int:
    """Tokens that a processor, which always adds tiles, writes for a base image and one tile."""
    return side * side + keeps_class + side * (side + 1)


def without_newlines(packed: Tensor, image: ImageSpec, side: int) -> Tensor:
    """The model's own packed tokens [N', C] without the newline of each row: [1, N, C]."""
    base, grid = packed[: side * side], packed[side * side :]
    grid = grid.reshape(image.rows * side, -1, packed.shape[-1])[:, :-1]
    return torch.cat((base, grid.flatten(0, 1)))[None]


def newline_row(core: Any, decoder: DecoderSpec) -> Tensor:
    """The newline as a row [1, C] of the table, whose rows are multiplied after they are read.

    The original multiplies words alone.
    """
    return scaled(core.image_newline[None], 1 / decoder.table_scale)


def image_spec(
    config: Any, processor: dict[str, Any], recipe: Recipe, mean: Any, std: Any, crops: bool = False
) -> ImageSpec:
    """Preprocessing to a base image and one of the model's grids of tiles.

    Args:
        config: transformers' config.
        processor: The image processor's numbers.
        recipe: What is asked for.
        mean: Mean where the processor names none.
        std: The same.
        crops: Whether the family's processor crops where it is not told.

    Raises:
        PlanError: If the model has no such grid, or the processor other views.
    """
    (rows, columns), known = recipe.tiles, known_grids(config)
    if rows * columns > 1 and (rows, columns) not in known:
        raise PlanError(
            f"tiles {rows}x{columns} is not a grid of the model, expected one of {sorted(known)}"
        )
    side = config.vision_config.image_size
    check_view(processor, side, crops)
    return image_of(processor, recipe, (side, side), "first", mean, std)


def known_grids(config: Any) -> set[tuple[int, int]]:
    """Tile grids (rows, columns) that the model was trained with.

    Raises:
        PlanError: If they are no sizes of pictures.
    """
    size, sizes = config.vision_config.image_size, config.image_grid_pinpoints
    if not isinstance(sizes, list | tuple) or not all(map(_is_size, sizes)):
        raise PlanError(
            f"image_grid_pinpoints is {sizes!r}, expected a list of heights and widths, such as"
            f" [[{size}, {2 * size}]]; correct config.json"
        )
    return {(height // size, width // size) for height, width in sizes}


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options that offer this grid alone to the model's own processor."""
    return {"image_grid_pinpoints": [[image.rows * image.height, image.columns * image.width]]}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor, offered this grid alone."""
    inputs = processor([picture], return_tensors="np", **processor_options(image))
    return inputs["pixel_values"][0][: image.views]  # one view: the base image


def _is_size(value: Any) -> bool:
    """Whether a value is a height and a width in pixels."""
    good = isinstance(value, list | tuple) and len(value) == 2
    return good and all(type(side) is int and side > 0 for side in value)
