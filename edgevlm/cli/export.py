"""`edgevlm export`: a checkpoint becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevlm.api import plan_with_cost
from edgevlm.bundle.files import check_free
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared import plan_text
from edgevlm.cli.shared.kinds import printed
from edgevlm.cli.shared.output import answer, progress
from edgevlm.libraries import require_torch
from edgevlm.recipe import Recipe
from edgevlm.registry import KINDS
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.parity.verification import Verification
    from edgevlm.pipeline import Exported


@o.takes_recipe
def main(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Bundle to write, usually NAME.edgevlm."
        ),
    ],
    recipe: Recipe,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and write nothing.")
    ] = False,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Export MODEL as a verified bundle.

    Shapes are static, and every block is compared with PyTorch.
    """
    check_free(Path(output), force)
    if dry_run:
        plan_text.show(*plan_with_cost(recipe), json)
        return
    require_torch()
    from edgevlm.pipeline import export

    with progress() as step:
        done = export(recipe, output, force, step)
    document = _document(done)
    answer(document, _text(done, document["weights_bytes"]), json)


def _document(done: Exported) -> dict[str, Any]:
    from edgevlm.exporters.contract import find_target

    plan = done.bundle.plan
    document = {
        "bundle": str(done.bundle.path),
        "target": plan.recipe.target,
        "blocks": len(plan.blocks),
        "weights_bytes": find_target(plan.recipe.target).weights_bytes(plan.files),
        **KINDS.load(plan.kind).facts(plan),
        "seconds": round(done.seconds, 3),
        "peak_rss_bytes": done.peak_rss_bytes,
    }
    if done.verification is None:
        why = f"no engine here has the backend '{plan.recipe.backend}'"
        document["not_measured"] = {"verification": why}
    return document


def _text(done: Exported, weights_bytes: int) -> str:
    plan, trial = done.bundle.plan, done.bundle.plan.recipe.trial
    return (
        f"{done.bundle.path}: {len(plan.blocks)} blocks, {megabytes(weights_bytes)},"
        f" {printed(plan.kind).export_text(plan)};"
        f" {_agreement(done.verification)}; {done.seconds:.0f} s,"
        f" peak {megabytes(done.peak_rss_bytes)}{f'; {trial}' if trial else ''}"
    )


def _agreement(parity: Verification | None) -> str:
    """Parity of the bundle with PyTorch, in a few words."""
    if parity is None:
        return "NOT VERIFIED: no engine here has this backend; run `edgevlm verify` where one has"
    return parity.agreement
