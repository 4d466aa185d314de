"""A table of blocks and schemes, and the mixture for a size: `edgevlm plan --sensitivity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.api import require_torch
from edgevlm.cli.shared.output import answer, progress, table
from edgevlm.recipe import Recipe
from edgevlm.units import megabytes, parse_bytes

if TYPE_CHECKING:
    from edgevlm.studies.sensitivity import Cost, Proposal, Sensitivity


def show(recipe: Recipe, size: str | None, as_json: bool) -> None:
    """Export in every scheme, and print what each costs each block.

    Args:
        recipe: The model and all that is not a scheme.
        size: Most bytes of the mixture that is proposed, such as `60MB`; None proposes none.
        as_json: Print one JSON document.
    """
    limit = None if size is None else parse_bytes(size)
    require_torch()
    from edgevlm.studies.sensitivity import measure

    with progress() as step:
        found = measure(recipe, step)
    proposal = None if limit is None else found.propose(limit)
    totals = {
        scheme: sum(sizes[scheme] for sizes in found.stage_bytes.values())
        for scheme in found.stage_bytes["vision"]
    }
    document = {"costs": found.costs, "bytes": totals, "proposal": proposal}
    answer(document, _text(found, totals, proposal), as_json)


def _text(found: Sensitivity, totals: dict[str, int], proposal: Proposal | None) -> str:
    costs = {(cost.block, cost.scheme): cost for cost in found.costs}
    names = dict.fromkeys(cost.block for cost in found.costs)
    rows = [[name, *(_cell(costs[name, scheme]) for scheme in totals)] for name in names]
    rows.append(["total, with embeddings", *map(megabytes, totals.values())])
    lines = [
        table(["block", *totals], rows),
        "dB: PSNR of the worst function against PyTorch; float32 is not rounded",
    ]
    if proposal:
        lines += [
            "",
            f"--quantize {proposal.quantize}: {megabytes(proposal.bytes)},"
            f" worst block {proposal.psnr_db:.0f} dB",
        ]
    return "\n".join(lines)


def _cell(cost: Cost) -> str:
    if cost.scheme == "none":
        return megabytes(cost.bytes)
    near = "same" if cost.psnr_db is None else f"{cost.psnr_db:.0f} dB"
    return f"{megabytes(cost.bytes)} {near}"
