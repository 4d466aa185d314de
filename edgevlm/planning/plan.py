"""Make a plan: recipe and checkpoint in, all the numbers out, before any graph exists.

No weight is read: headers of the files are enough, and where there are no files the config is.

The family says what kind of model the checkpoint is; `planning/<kind>.py` makes the plan of that
kind with its own `make_plan`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from edgevlm.bundle.functions import Block
from edgevlm.bundle.plan import Plan
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.quantization.schemes import parse_scheme
from edgevlm.recipe import Recipe


class Planned(Protocol):
    """A plan with what it was made from, for the steps that follow it."""

    @property
    def plan(self) -> Plan[Any]:
        """The plan."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint."""

    @property
    def description(self) -> Any:
        """The family's description; the type is that of the kind."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan must know beside its numbers."""

    @property
    def tokenizer_json(self) -> str:
        """Text of the bundle's tokenizer.json, where the host has a table of words."""

    def parts(self, model: Any) -> Any:
        """A model of the checkpoint as static modules with the recipe's methods.

        The type is that of the kind; all have `tables`, the matrices of the host's tables by name.
        """

    def build(self, block: Block, parts: Any) -> nn.Module:
        """The module of a block, over the weights of the parts."""

    def measured(self, model: Any, parts: Any, progress: Callable[[str], None]) -> Planned:
        """The same with constants of the host that take the weights to be known."""


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


def plan_with_weights(recipe: Recipe, checkpoint: Checkpoint) -> Planned:
    """A plan whose checkpoint has its weights, which are read once to see whether they can be used.

    What is on a hub is fetched when the plan has passed without it.

    Raises:
        ModelError: If there are no weights, or one of them is not finite.
        PlanError: If one is larger than float16 holds, in which the recipe stores it.
    """
    if checkpoint.remote:
        make_plan(recipe, checkpoint.before_fetching())
    planned = make_plan(recipe, checkpoint.fetched())
    halves = (name for name in recipe.quantize.names if 16 in parse_scheme(name).bits)
    planned.checkpoint.check_numbers(next(halves, None))
    return planned
