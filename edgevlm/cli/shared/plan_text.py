"""A plan as text and as JSON: `edgevlm plan`, and `export --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevlm import api
from edgevlm.bundle.plan import Plan
from edgevlm.cli.shared.device_fit import beside
from edgevlm.cli.shared.kinds import printed
from edgevlm.cli.shared.output import answer, table
from edgevlm.devices.shared import fit
from edgevlm.devices.shared.named import Device
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.method_cost import MethodCost


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
    rows = [
        [
            b.name,
            f.name,
            megabytes(b.weights_bytes),
            f"{f.flops / 1e9:.2f}",
            ", ".join(_shape(t.name, t.shape) for t in f.fed),
        ]
        for b in plan.blocks
        for f in b.functions
    ]
    return "\n".join(
        [
            f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target},"
            f" weights {megabytes(plan.weights_bytes)}",
            *notes,
            *printed(plan.kind).plan_lines(plan, cost),
            "",
            table(["block", "function", "weights", "GFLOP", "inputs"], rows),
        ]
    )


def _shape(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}{list(shape)}".replace(" ", "")
