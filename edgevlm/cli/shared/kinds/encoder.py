"""Text of plans of encoders: view, texts and embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.bundle.kinds import encoder as kind
from edgevlm.bundle.kinds.encoder import EncoderPlan
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.sites.method_cost import MethodCost


def plan_document(plan: EncoderPlan) -> dict[str, object]:
    """Further keys of `plan --json`."""
    text = plan.host.text
    return {**kind.facts(plan), "text_tokens": text.tokens if text else 0}


def plan_lines(plan: EncoderPlan, cost: MethodCost | None) -> list[str]:
    """Lines of `plan` between the model and its blocks."""
    image, text = plan.host.image, plan.host.text
    clip = "" if image.frames == 1 else f"{image.frames} frames of "
    joined = "" if image.views == 1 else f", of which the mean of {image.views} views is taken"
    lines = [
        f"{image.subject}: {clip}{image.width}x{image.height} pixels,"
        f" {plan.host.encoder.tokens[0]} tokens -> {plan.host.size}"
        f" {'classes' if plan.host.classes else 'numbers'}{joined}",
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
    if plan.host.classes:
        return f"scores of {plan.host.size} classes"
    return f"embeddings of {plan.host.size} numbers"
