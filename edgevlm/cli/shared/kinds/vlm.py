"""A vision language model in print: visual tokens, the sequence, the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.bundle.host import LayoutItem
from edgevlm.bundle.kinds.shared.states import States
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.sites.method_cost import MethodCost


def plan_document(plan: VlmPlan) -> dict[str, object]:
    """Further keys of `plan --json`."""
    return {
        "visual_tokens": plan.host.visual_tokens,
        "image_tokens": plan.host.image_tokens,
        "prompt_tokens": plan.host.prompt_tokens,
        "context": plan.host.states.tokens,
        "chunk": plan.host.chunk,
        "layout": plan.host.layout,
        "kv_bytes": plan.host.states.bytes,
    }


def plan_lines(plan: VlmPlan, cost: MethodCost | None) -> list[str]:
    """Lines of `plan` between the model and its blocks."""
    states, site = plan.host.states, plan.site("tokens")
    words = {"vision": "encoder: {} -> {} patches", "decoder": "language model: {} -> {} visual"}
    inside = [
        f"{words[s.site].format(s.tokens_in, s.tokens_out)} by {s.method} at site {s.site}"
        for s in plan.sites
        if s.site in words
    ]
    views, between = plan.host.image.views, plan.host.layout.between
    return [
        f"visual tokens: {views} view{'s' * (views > 1)}, {site.tokens_in} -> {site.tokens_out}"
        f" by {site.method} at site {site.site}",
        *inside,
        *([_cost(site.method, cost)] if cost else []),
        f"prompt: {_parts(plan.host.layout.prompt)}",
        f"image: {_parts(plan.host.layout.image)} = {plan.host.image_tokens} tokens",
        *([f"between two images: {_parts(between)}"] if between else []),
        *([_levels(plan)] if plan.host.levels else []),
        f"prompt of {plan.host.prompt_tokens} tokens and the question; context of {states.tokens};"
        f" prefill in chunks of {plan.host.chunk}",
        f"KV cache: {_states(states)}, {megabytes(states.bytes)}, {states.form}",
    ]


def export_text(plan: VlmPlan) -> str:
    """Size of the output, for the last line of `export`."""
    return f"{plan.site('tokens').tokens_in} -> {plan.host.visual_tokens} visual tokens"


def _cost(method: str, cost: MethodCost) -> str:
    return (
        f"cost of {method}: {cost.nodes} operators, peak {megabytes(cost.bytes)},"
        f" {cost.ms:.2f} ms here in PyTorch"
    )


def _states(states: States) -> str:
    """The arrays of the layers; layers with equal ones together."""
    texts = []
    for index, state in enumerate(states.kinds):
        layers = states.layers.count(index)
        arrays = [f"{state.shapes.count(s)} x {list(s)}" for s in dict.fromkeys(state.shapes)]
        texts.append(f"{layers} layer{'s' * (layers > 1)} x {' and '.join(arrays)}")
    return "; ".join(texts)


def _levels(plan: VlmPlan) -> str:
    """Where features of further depths of the encoder go, and what a method makes of them."""
    layers = ", ".join(map(str, plan.host.levels))
    site = plan.site("tokens")
    fewer = site.tokens_out < site.tokens_in
    kept = f"; {site.method} takes those at the kept positions, also of tokens that it merges"
    return f"features of {len(plan.host.levels)} further depths go to decoder layers {layers}" + (
        kept * fewer
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
