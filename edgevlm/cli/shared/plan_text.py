"""A plan as text and as JSON: `edgevlm plan`, and `export --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevlm import api
from edgevlm.bundle.host import LayoutItem
from edgevlm.bundle.plan import Plan
from edgevlm.cli.shared.device_fit import beside
from edgevlm.cli.shared.output import answer, table
from edgevlm.devices.shared import fit
from edgevlm.devices.shared.named import Device
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.method_cost import MethodCost


def show(
    plan: Plan[Any], cost: MethodCost | None, as_json: bool, device: Device | None = None
) -> None:
    """Print a plan with the cost of its method, and its fit to a device, as text or JSON."""
    document, text = _document(plan, cost), _text(plan, cost)
    if device:
        comparison = fit.fit(device, plan.recipe, fit.offered(plan.recipe), api.plan)
        document["for"], text = comparison, f"{text}\n\n{beside(comparison)}"
    answer(document, text, as_json)


def _document(plan: Plan[Any], cost: MethodCost | None) -> dict[str, object]:
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
        "visual_tokens": plan.host.visual_tokens,
        "image_tokens": plan.host.image_tokens,
        "prompt_tokens": plan.host.prompt_tokens,
        "context": plan.host.kv.tokens,
        "chunk": plan.host.chunk,
        "layout": plan.host.layout,
        "weights_bytes": plan.weights_bytes,
        "kv_bytes": plan.host.kv.bytes,
        "minimum_budget_bytes": None,
        "predicted": None,
        "not_measured": {
            "minimum_budget_bytes": "measured on the machine that runs it: plan BUNDLE --memory",
            "predicted": "measured on the machine that runs it: plan BUNDLE --memory",
        },
    }


def _text(plan: Plan[Any], cost: MethodCost | None) -> str:
    kv, site = plan.host.kv, plan.site("tokens")
    words = {"vision": "encoder: {} -> {} patches", "decoder": "language model: {} -> {} visual"}
    inside = [
        f"{words[s.site].format(s.tokens_in, s.tokens_out)} by {s.method} at site {s.site}"
        for s in plan.sites
        if s.site in words
    ]
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
    views = plan.host.image.views
    return "\n".join(
        [
            f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target},"
            f" weights {megabytes(plan.weights_bytes)}",
            f"visual tokens: {views} view{'s' * (views > 1)}, {site.tokens_in} -> {site.tokens_out}"
            f" by {site.method} at site {site.site}",
            *inside,
            *([_cost(site.method, cost)] if cost else []),
            f"prompt: {_parts(plan.host.layout.prompt)}",
            f"image: {_parts(plan.host.layout.image)} = {plan.host.image_tokens} tokens",
            f"prompt of {plan.host.prompt_tokens} tokens and the question; context of {kv.tokens};"
            f" prefill in chunks of {plan.host.chunk}",
            f"KV cache: {kv.layers} layers x 2 x {[1, kv.heads, kv.tokens, kv.head_size]},"
            f" {megabytes(kv.bytes)}, {kv.form}",
            "",
            table(["block", "function", "weights", "GFLOP", "inputs"], rows),
        ]
    )


def _cost(method: str, cost: MethodCost) -> str:
    return (
        f"cost of {method}: {cost.nodes} operators, peak {megabytes(cost.bytes)},"
        f" {cost.ms:.2f} ms here in PyTorch"
    )


def _parts(items: tuple[LayoutItem, ...]) -> str:
    names = [
        f"{len(p.ids)} ids"
        if p.kind == "ids"
        else f"visual {p.start}:{p.stop}"
        if p.kind == "visual"
        else p.kind
        for p in items
    ]
    return " + ".join(names if len(names) <= 9 else [*names[:4], "…", *names[-4:]])


def _shape(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}{list(shape)}".replace(" ", "")
