"""A vision language model in print: visual tokens, the sequence, the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.bundle.host import LayoutItem
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.method_cost import MethodCost


def plan_document(plan: VlmPlan) -> dict[str, object]:
    """Further keys of `plan --json`."""
    return {
        "visual_tokens": plan.host.visual_tokens,
        "image_tokens": plan.host.image_tokens,
        "prompt_tokens": plan.host.prompt_tokens,
        "context": plan.host.kv.tokens,
        "chunk": plan.host.chunk,
        "layout": plan.host.layout,
        "kv_bytes": plan.host.kv.bytes,
    }


def plan_lines(plan: VlmPlan, cost: MethodCost | None) -> list[str]:
    """What `plan` prints between the model and its blocks."""
    kv, site = plan.host.kv, plan.site("tokens")
    words = {"vision": "encoder: {} -> {} patches", "decoder": "language model: {} -> {} visual"}
    inside = [
        f"{words[s.site].format(s.tokens_in, s.tokens_out)} by {s.method} at site {s.site}"
        for s in plan.sites
        if s.site in words
    ]
    views = plan.host.image.views
    return [
        f"visual tokens: {views} view{'s' * (views > 1)}, {site.tokens_in} -> {site.tokens_out}"
        f" by {site.method} at site {site.site}",
        *inside,
        *([_cost(site.method, cost)] if cost else []),
        f"sequence: {_parts(plan.host.layout.prompt)}",
        f"an image: {_parts(plan.host.layout.image)} = {plan.host.image_tokens} tokens",
        f"prompt {plan.host.prompt_tokens} tokens and the question; context {kv.tokens};"
        f" prefill in chunks of {plan.host.chunk}",
        f"KV cache: {kv.layers} layers x 2 x {[1, kv.heads, kv.tokens, kv.head_size]},"
        f" {megabytes(kv.bytes)}, {kv.form}",
    ]


def export_text(plan: VlmPlan) -> str:
    """What an export says of its size."""
    return f"{plan.site('tokens').tokens_in} -> {plan.host.visual_tokens} visual tokens"


def _cost(method: str, cost: MethodCost) -> str:
    return (
        f"{method} itself: {cost.nodes} operators, {megabytes(cost.bytes)} while it runs,"
        f" {cost.ms:.2f} ms here in PyTorch"
    )


def _parts(parts: tuple[LayoutItem, ...]) -> str:
    shown = [
        f"{len(p.ids)} ids"
        if p.kind == "ids"
        else f"visual {p.start}:{p.stop}"
        if p.kind == "visual"
        else p.kind
        for p in parts
    ]
    return " + ".join(shown if len(shown) <= 9 else [*shown[:4], "…", *shown[-4:]])
