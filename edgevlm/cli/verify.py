"""`edgevlm verify`: a bundle against PyTorch, block by block and end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.api import require_torch
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, progress, say, table

if TYPE_CHECKING:
    from edgevlm.parity.verification import Verification


def main(
    bundle: o.BundleArgument,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Checkpoint to compare with; the bundle's source if not given."
        ),
    ] = None,
    engine: o.Engine = None,
    json: o.Json = False,
) -> None:
    """Compare BUNDLE with PyTorch.

    Every function of every block, and the logits; exit 1 if one differs.
    """
    require_torch()
    from edgevlm.parity.verify import verify

    with progress() as step:
        found = verify(bundle, model, progress=step, engine=engine)
    answer(found, _text(found), json)
    if not found.ok:
        say(f"edgevlm: {found.first_failure()}")
        raise typer.Exit(1)


def _text(found: Verification) -> str:
    rows = [
        [
            b.name,
            b.function,
            f"{b.rel_error:.1e}",
            "exact" if b.psnr_db is None else f"{b.psnr_db:.0f}",
            "ok" if b.ok else "DIFFERS",
        ]
        for b in found.blocks
    ]
    lines = [
        table(["block", "function", "rel_error", "psnr_db", ""], rows),
        f"{found.summary}, {found.engine}",
    ]
    if found.largest_float16:
        where, (top, kind) = max(found.largest_float16.items(), key=lambda item: item[1][0])
        lines.append(f"largest number in float16: {top:,.0f} of 65,504, from {kind} in {where}")
    return "\n".join(lines)
