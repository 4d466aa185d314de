"""Text of plans of encoders: view, texts and embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.bundle.kinds.encoder import EncoderPlan
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.method_cost import MethodCost


def plan_document(plan: EncoderPlan) -> dict[str, object]:
    """Further keys of `plan --json`."""
    text = plan.host.text
    return {"embedding_dimensions": plan.host.size, "text_tokens": text.tokens if text else 0}


def plan_lines(plan: EncoderPlan, cost: MethodCost | None) -> list[str]:
    """Lines of `plan` between the model and its blocks."""
    image, text = plan.host.image, plan.host.text
    lines = [
        f"image: {image.width}x{image.height} pixels, {plan.host.encoder.tokens[0]} tokens ->"
        f" {plan.host.size} numbers",
        *(
            f"encoder: {site.tokens_in} -> {site.tokens_out} patches by {site.method} at site"
            f" {site.site}"
            for site in plan.sites
        ),
    ]
    if text is None:
        return lines
    table = text.embedding
    return [
        *lines,
        f"text: {text.tokens} tokens -> {plan.host.size} numbers; table {table.rows:,} x"
        f" {table.columns}, {table.dtype}, {megabytes(table.bytes)}, read row by row",
        f"similarity: {plan.host.scale:.4g} x cosine {plan.host.bias:+.4g}, {plan.host.scores}",
    ]


def export_text(plan: EncoderPlan) -> str:
    """Size of the output, for the last line of `export`."""
    return f"embeddings of {plan.host.size} numbers"
