"""What a family says of a recipe's tiles and frames, where it has no place for them."""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.models.family import RESAMPLE
from edgevlm.models.shared.preprocessing import normalization
from edgevlm.recipe import Recipe


def check_still(recipe: Recipe, family: str) -> None:
    """Refuse clips.

    Raises:
        PlanError: If the recipe has more than one frame.
    """
    if recipe.frames > 1:
        raise PlanError(f"{family} does not support clips: got {recipe.frames} frames, expected 1")


def check_one_view(recipe: Recipe, family: str) -> None:
    """Refuse clips and tiles.

    Raises:
        PlanError: If the recipe has more than one view of a picture.
    """
    check_still(recipe, family)
    check_whole(recipe, family)


def check_whole(recipe: Recipe, family: str) -> None:
    """Refuse tiles.

    Raises:
        PlanError: If the recipe cuts a picture.
    """
    rows, columns = recipe.tiles
    if rows * columns > 1:
        raise PlanError(
            f"{family} reads a picture as one view: got tiles {rows}x{columns}, expected 1x1"
        )


def one_size(
    processor: dict[str, Any], recipe: Recipe, default: tuple[int, int], multiple: int,
    mean: Any, std: Any,
) -> ImageSpec:  # fmt: skip
    """A picture as one view of the recipe's size, which the encoder takes as it is.

    Args:
        processor: The image processor's numbers.
        recipe: What is asked for.
        default: Height and width where the recipe names none.
        multiple: What sides must be multiples of, in pixels.
        mean: Mean where the processor names none.
        std: Deviation where it names none.

    Raises:
        PlanError: For a clip, tiles, or sides that are no multiples.
    """
    if recipe.frames > 1:
        raise PlanError(
            f"clips of this family are not supported: got {recipe.frames} frames, expected 1"
        )
    if recipe.tiles != (1, 1):
        raise PlanError("this family cuts no tiles; leave out --tiles and give a larger --size")
    height, width = recipe.size or default
    if height % multiple or width % multiple:
        near = (max(round(side / multiple), 1) * multiple for side in (height, width))
        raise PlanError(
            f"size {height}x{width} has sides that are no multiples of {multiple} pixels; give such"
            f" as {'x'.join(map(str, near))}"
        )
    return image_of(processor, recipe, (height, width), "first", mean, std)


def image_of(
    processor: dict[str, Any], recipe: Recipe, size: tuple[int, int], overview: str,
    mean: Any, std: Any, resample: int = 3,
) -> ImageSpec:  # fmt: skip
    """Preprocessing to the recipe's tiles and frames.

    Args:
        processor: The image processor's numbers.
        recipe: What is asked for.
        size: Height and width of a view in pixels.
        overview: Where the whole picture is beside tiles: `first` or `last`.
        mean: Mean where the processor names none.
        std: Deviation where it names none.
        resample: Filter where it names none, by PIL's number.
    """
    means, deviations = normalization(processor, mean, std)
    return ImageSpec(
        height=size[0],
        width=size[1],
        rows=recipe.tiles[0],
        columns=recipe.tiles[1],
        global_view=overview,
        frames=recipe.frames,
        resample=RESAMPLE[processor.get("resample", resample)],
        mean=means,
        std=deviations,
    )
