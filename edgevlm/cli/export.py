"""`edgevlm export`: a checkpoint becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.api import plan_with_cost, require_torch
from edgevlm.bundle.files import check_free
from edgevlm.cli.plan import show
from edgevlm.cli.shared import options as o

if TYPE_CHECKING:
    from edgevlm.parity.verify import Verification


def main(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write.")],
    model: o.ModelArgument = o.Defaults.model,
    target: o.Target = o.Defaults.target,
    tokens: o.Tokens = None,
    method: o.Methods = None,
    quantize: o.Quantize = o.Defaults.quantize,
    context: o.Context = None,
    frames: o.Frames = o.Defaults.frames,
    tiles: o.Tiles = o.Defaults.tiles,
    block_size: o.BlockSize = o.Defaults.block_size,
    chunk: o.Chunk = None,
    calibrate: o.Calibrate = None,
    backend: o.Backend = None,
    speculate: o.Speculate = 0,
    revision: o.Revision = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and write nothing.")] = False,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Export MODEL to a bundle: fixed token budget, static graphs, checked against PyTorch."""
    recipe = o.recipe(
        model,
        revision,
        target,
        tokens,
        method,
        quantize,
        context,
        frames,
        tiles,
        block_size,
        chunk,
        calibrate,
        backend,
        speculate,
    )
    check_free(Path(output), force)
    if dry_run:
        show(*plan_with_cost(recipe), json)
        return
    require_torch()
    from edgevlm.exporters.contract import find_target
    from edgevlm.pipeline import export

    with o.progress() as step:
        done = export(recipe, output, force, step)
    made, parity = done.bundle.plan, done.verification
    stored = find_target(recipe.target).weights_bytes(made.files)
    document = {
        "bundle": str(done.bundle.path),
        "target": recipe.target,
        "blocks": len(made.blocks),
        "weights_bytes": stored,
        "visual_tokens": made.visual_tokens,
        "seconds": round(done.seconds, 3),
        "peak_rss_bytes": done.peak_rss_bytes,
    }
    if parity is None:
        document["not_measured"] = {"verification": f"nothing here runs '{recipe.backend}'"}
    text = (
        f"{done.bundle.path}: {len(made.blocks)} blocks, {o.megabytes(stored)},"
        f" {made.reduction.tokens_in} -> {made.visual_tokens} visual tokens;"
        f" {_agreement(parity)}; {done.seconds:.0f} s, peak {o.megabytes(done.peak_rss_bytes)}"
    )
    o.answer(document, text, json)


def _agreement(parity: Verification | None) -> str:
    """How near the bundle is to PyTorch, in a few words."""
    if parity is None:
        return "NOT VERIFIED: no engine here runs this backend; verify it where one does"
    equal = f"{parity.tokens_equal:.0%}"
    if all(threshold.exact for threshold in parity.thresholds.values()):
        return f"agrees with PyTorch (logits {parity.logits_rel_error:.0e}, tokens {equal})"
    rounded = [block for block in parity.blocks if block.psnr_db is not None]
    worst = min(rounded, key=lambda block: block.psnr_db or 0.0)
    name = f"{worst.name}.{worst.function}"
    return f"rounded: worst block {name} {worst.psnr_db:.0f} dB, {equal} of PyTorch's tokens"
