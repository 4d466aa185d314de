"""The error of each block in each scheme, and a mix for a size: `edgevlm plan --sensitivity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.cli.shared.output import answer, progress, table
from edgevlm.libraries import require_torch
from edgevlm.recipe import Recipe
from edgevlm.units import megabytes, parse_bytes

if TYPE_CHECKING:
    from edgevlm.studies.sensitivity import Proposal, SchemeLoss, Sensitivity


def show(recipe: Recipe, size: str | None, as_json: bool) -> None:
    """Export in every scheme, and print the error of each block in it.

    Args:
        recipe: The recipe; its scheme is not used.
        size: Most bytes of the proposed mix of schemes, such as `60MB`; None proposes none.
        as_json: Print one JSON document.
    """
    limit = None if size is None else parse_bytes(size)
    require_torch()
    from edgevlm.studies.sensitivity import measure

    with progress() as step:
        sensitivity = measure(recipe, step)
    proposal = None if limit is None else sensitivity.propose(limit)
    totals = {
        scheme: sum(sizes[scheme] for sizes in sensitivity.stage_bytes.values())
        for scheme in next(iter(sensitivity.stage_bytes.values()))
    }
    document = {"costs": sensitivity.losses, "bytes": totals, "proposal": proposal}
    answer(document, _text(sensitivity, totals, proposal), as_json)


def _text(sensitivity: Sensitivity, totals: dict[str, int], proposal: Proposal | None) -> str:
    losses = {(loss.block, loss.scheme): loss for loss in sensitivity.losses}
    names = dict.fromkeys(loss.block for loss in sensitivity.losses)
    rows = [[name, *(_cell(losses[name, scheme]) for scheme in totals)] for name in names]
    rows.append(["total, with embeddings", *map(megabytes, totals.values())])
    lines = [
        table(["block", *totals], rows),
        "dB: PSNR of the worst function against PyTorch; float32 is exact",
    ]
    if proposal:
        lines += [
            "",
            f"--quantize {proposal.quantize}: {megabytes(proposal.bytes)},"
            f" worst block {proposal.psnr_db:.0f} dB",
        ]
    return "\n".join(lines)


def _cell(loss: SchemeLoss) -> str:
    if loss.scheme == "none":
        return megabytes(loss.bytes)
    near = "same" if loss.psnr_db is None else f"{loss.psnr_db:.0f} dB"
    return f"{megabytes(loss.bytes)} {near}"
