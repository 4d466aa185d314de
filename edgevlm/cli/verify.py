"""`edgevlm verify`: a bundle against PyTorch, block by block and end to end."""

from __future__ import annotations

from typing import Annotated

import typer

from edgevlm.api import require_torch
from edgevlm.cli.shared import options as o


def main(
    bundle: o.BundleArgument,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint; the manifest's source if not given.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine, see `edgevlm engines`.")] = None,
    json: o.Json = False,
) -> None:
    """Compare every function of BUNDLE with PyTorch; exit 1 if one differs."""
    require_torch()
    from edgevlm.parity.verify import verify

    with o.progress() as step:
        result = verify(bundle, model, progress=step, engine=engine)
    rows = [
        [
            b.name,
            b.function,
            f"{b.rel_error:.1e}",
            "exact" if b.psnr_db is None else f"{b.psnr_db:.0f}",
            "ok" if b.ok else "DIFFERS",
        ]
        for b in result.blocks
    ]
    summary = f"{result.summary}, {result.engine}"
    text = o.table(["block", "function", "rel_error", "psnr_db", ""], rows) + "\n" + summary
    if result.largest_float16:
        where, (top, kind) = max(result.largest_float16.items(), key=lambda item: item[1][0])
        text += f"\nlargest number in float16: {top:,.0f} of 65,504, from {kind} in {where}"
    o.answer(result, text, json)
    if not result.ok:
        o.say(f"edgevlm: {result.first_failure()}")
        raise typer.Exit(1)
