"""`edgevlm verify`: a bundle against PyTorch, block by block and end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, progress, say, table
from edgevlm.libraries import require_torch

if TYPE_CHECKING:
    from edgevlm.parity.verification import Verification


def main(
    bundle: o.BundleArgument,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Checkpoint to compare with; default: the bundle's source."
        ),
    ] = None,
    engine: o.Engine = None,
    json: o.Json = False,
) -> None:
    """Compare BUNDLE with PyTorch.

    Compares every function of every block, and the logits; exit code 1 if one differs.
    """
    require_torch()
    from edgevlm.parity.verify import verify

    with progress() as step:
        verification = verify(bundle, model, progress=step, engine=engine)
    answer(verification, _text(verification), json)
    if not verification.ok:
        say(f"edgevlm: {verification.first_failure()}")
        raise typer.Exit(1)


def _text(verification: Verification) -> str:
    rows = [
        [
            b.name,
            b.function,
            f"{b.rel_error:.1e}",
            "exact" if b.psnr_db is None else f"{b.psnr_db:.0f}",
            "ok" if b.ok else "DIFFERS",
        ]
        for b in verification.blocks
    ]
    lines = [
        table(["block", "function", "rel_error", "psnr_db", ""], rows),
        f"{verification.summary}, {verification.engine}",
    ]
    lines += [check.text for check in verification.checks if check.ok and check.text]
    if verification.largest_float16:
        where, (top, kind) = max(verification.largest_float16.items(), key=lambda item: item[1][0])
        lines.append(f"largest value in float16: {top:,.0f} of 65,504, from {kind} in {where}")
    return "\n".join(lines)
