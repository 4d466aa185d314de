"""`edgevlm plan`: the numbers of a recipe before any graph exists."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from edgevlm.api import plan_with_cost
from edgevlm.cli.shared import budget, plan_text, sensitivity_text
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import waiting
from edgevlm.devices.shared import named
from edgevlm.errors import RecipeError
from edgevlm.libraries import uncollected
from edgevlm.recipe import Recipe


@o.takes_recipe
def main(
    recipe: Recipe,
    context_: typer.Context,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DEVICE",
            help="Whether the plan fits a named device, and which schemes would; its target is"
            " the default. `edgevlm devices` lists them.",
        ),
    ] = None,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity", help="Export in every scheme, and print the error of each block."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --sensitivity: propose the most exact mix of schemes of at most this size,"
            " such as 60MB.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="MODEL is a bundle: measure its blocks, and print loads and times with this"
            " memory budget, such as 300MB.",
        ),
    ] = None,
    save: Annotated[
        bool,
        typer.Option("--save", help="With --memory: write the schedules for apps into the bundle."),
    ] = False,
    json: o.Json = False,
) -> None:
    """Print the plan of an export of MODEL.

    Tokens, shapes, bytes and FLOPs of each block, before any graph exists.
    """
    _check(for_, sensitivity, weights, memory, save)
    if memory is not None:
        budget.show(recipe.model, memory, save, json)
    elif sensitivity:
        sensitivity_text.show(recipe, weights, json)
    else:
        device = named.load(for_) if for_ else None
        if device and not o.is_given(context_, "target"):
            recipe = replace(recipe, target=device.target)
        with uncollected():
            with waiting(f"plan '{recipe.model}'"):
                planned = plan_with_cost(recipe)
            plan_text.show(*planned, json, device)


def _check(
    device: str | None, sensitivity: bool, weights: str | None, memory: str | None, save: bool
) -> None:
    """Refuse options that conflict."""
    if save and memory is None:
        raise RecipeError("--save needs --memory, as it writes the schedules of a budget")
    if weights is not None and not sensitivity:
        raise RecipeError(
            "--weights needs --sensitivity, which measures the schemes to choose from"
        )
    if sensitivity and device:
        raise RecipeError("--for and --sensitivity exclude each other; drop one of them")
