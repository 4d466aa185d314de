"""Make a plan: recipe and checkpoint in, all the numbers out, before any graph exists.

The family says what kind of model the checkpoint is; `planning/<kind>.py` makes the plan of that
kind with its own `make_plan`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgevlm.models.checkpoint import Checkpoint
from edgevlm.recipe import Recipe

if TYPE_CHECKING:
    from edgevlm.planning.vlm import Planned


def make_plan(recipe: Recipe, checkpoint: Checkpoint) -> Planned:
    """Work out every number of a bundle.

    Returns:
        The plan with what it was made from; the type is that of the kind.

    Raises:
        RecipeError: For an unknown target, method or scheme, or wrong method options.
        PlanError: For a budget, context or grid that cannot work.
        ModelError: For a checkpoint that is not what its family expects.
    """
    kind = importlib.import_module(f"edgevlm.planning.{checkpoint.family.KIND}")
    planned: Planned = kind.make_plan(recipe, checkpoint)
    return planned
