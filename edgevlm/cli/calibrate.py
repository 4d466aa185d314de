"""`edgevlm calibrate`: options of a method that are measured on pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, every, progress
from edgevlm.libraries import require_torch
from edgevlm.recipe import MethodChoice, Recipe, parse_tiles

PAUSE_S = 10.0  # between two lines of the log


def main(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Method; options of its calibration follow as in mustdrop:threshold=0.7.",
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Hub id, checkpoint folder, or 'embedded'.")
    ] = "embedded",
    images: Annotated[
        str,
        typer.Option(
            metavar="N|PATH",
            help="Pictures: N scenes of the embedded dataset, a folder of images, or a .jsonl file"
            " of questions.",
        ),
    ] = "64",
    patches: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Patches of a view that are left in the mean (dymu)."
        ),
    ] = None,
    tiles: Annotated[
        str, typer.Option(metavar="ROWSxCOLUMNS", help="Grid of tiles that a picture is cut into.")
    ] = "1x1",
    revision: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Commit or tag of a Hub id; default: the newest."),
    ] = None,
    json: o.Json = False,
) -> None:
    """Measure the options that a method needs on pictures, and print its --method."""
    require_torch()
    from edgevlm.studies.calibration import calibrate_method

    choice = MethodChoice.parse(method)
    if not images.strip("0"):
        raise typer.BadParameter(f"--images is a number from 1 or a path, got '{images}'")
    if patches is not None:
        choice = replace(choice, options=(*choice.options, ("patches", patches)))
    recipe = Recipe(model, revision, tiles=parse_tiles(tiles))
    with progress() as step:
        found = calibrate_method(choice, recipe, images, every(PAUSE_S, step))
    answer(found, f"--method {found.method}", json)
