"""A plan as text and as JSON: `edgevlm plan`, and `export --dry-run`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from edgevlm import api
from edgevlm.bundle.functions import Block
from edgevlm.bundle.plan import Plan
from edgevlm.cli.shared.device_fit import beside
from edgevlm.cli.shared.kinds import printed
from edgevlm.cli.shared.output import answer, table
from edgevlm.devices.shared import fit
from edgevlm.devices.shared.named import Device
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.sites.method_cost import MethodCost


def show(
    plan: Plan[Any],
    cost: MethodCost | None,
    notes: tuple[str, ...],
    as_json: bool,
    device: Device | None = None,
) -> None:
    """Print a plan with the cost of its method, and its fit to a device, as text or JSON."""
    document, text = _document(plan, cost, notes), _text(plan, cost, notes)
    if device:
        comparison = fit.fit(device, plan.recipe, fit.offered(plan.recipe), api.plan)
        document["for"], text = comparison, f"{text}\n\n{beside(comparison)}"
    answer(document, text, as_json)


def _document(
    plan: Plan[Any], cost: MethodCost | None, notes: tuple[str, ...]
) -> dict[str, object]:
    stages = list(dict.fromkeys(block.stage for block in plan.blocks))
    return {
        "stages": stages,
        "blocks": [
            {
                "name": b.name,
                "stage": b.stage,
                "weights_bytes": b.weights_bytes,
                "functions": b.functions,
                "flops": sum(f.flops for f in b.functions),
            }
            for b in plan.blocks
        ],
        "sites": plan.sites,
        "method_cost": cost,
        **printed(plan.kind).plan_document(plan),
        "weights_bytes": plan.weights_bytes,
        "notes": notes,
        "minimum_budget_bytes": None,
        "predicted": None,
        "not_measured": {
            "minimum_budget_bytes": "measured on the machine that runs it: plan BUNDLE --memory",
            "predicted": "measured on the machine that runs it: plan BUNDLE --memory",
        },
    }


def _text(plan: Plan[Any], cost: MethodCost | None, notes: tuple[str, ...]) -> str:
    return "\n".join(
        [
            f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target},"
            f" weights {megabytes(plan.weights_bytes)}",
            *notes,
            *printed(plan.kind).plan_lines(plan, cost),
            "",
            table(["block", "function", "weights", "GFLOP", "inputs"], block_rows(plan)),
        ]
    )


def block_rows(plan: Plan[Any]) -> list[list[str]]:
    """A row for each function of a block, of equal ones that follow each other once, and a total.

    The row of several has the numbers of one of them.
    """
    rows = []
    for _, equal in groupby(plan.blocks, key=_numbers):
        first, *others = equal
        name = first.name
        if others:
            name += f" to {others[-1].name.rpartition('-')[2]} ({1 + len(others)} equal)"
        rows += [[name, *row] for row in _cells(first)]
    work: dict[str, int] = {}
    for block in plan.blocks:
        for function in block.functions:
            name = f"{block.stage} {function.name}".removeprefix(f"{function.name} ")
            work[name] = work.get(name, 0) + function.flops
    each = ", ".join(f"{name} {flops / 1e9:.2f}" for name, flops in work.items())
    whole = "total, with tables" if plan.host.tables else "total"
    return [*rows, [whole, "", megabytes(plan.weights_bytes), "", f"GFLOP: {each}"]]


def _cells(block: Block) -> list[list[str]]:
    """What is said of a block's functions beside its name."""
    return [
        [
            f.name,
            megabytes(block.weights_bytes),
            f"{f.flops / 1e9:.2f}",
            ", ".join(_shape(t.name, t.shape) for t in f.fed),
        ]
        for f in block.functions
    ]


def _numbers(block: Block) -> object:
    """What equal blocks have in common."""
    return block.stage, block.weights_bytes, [(f.name, f.flops, f.fed) for f in block.functions]


def _shape(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}{list(shape)}".replace(" ", "")
