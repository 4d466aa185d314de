"""What a family says of a recipe's tiles and frames, where it has no place for them."""

from __future__ import annotations

from edgevlm.errors import PlanError
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
    rows, columns = recipe.tiles
    if rows * columns > 1:
        raise PlanError(
            f"{family} reads a picture as one view: got tiles {rows}x{columns}, expected 1x1"
        )
