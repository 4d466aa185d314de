"""A diffusion model in print: the video, its latents, the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.bundle.kinds import diffusion as kind
from edgevlm.bundle.kinds.diffusion import DiffusionPlan
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.planning.sites.method_cost import MethodCost


def plan_document(plan: DiffusionPlan) -> dict[str, object]:
    """Further keys of `plan --json`."""
    return {**kind.facts(plan), "text_tokens": plan.host.text.tokens}


def plan_lines(plan: DiffusionPlan, cost: MethodCost | None) -> list[str]:
    """Lines of `plan` between the model and its blocks."""
    host, table = plan.host, plan.host.text.embedding
    channels, frames, height, width = host.denoiser.latents
    tile, caches = host.vae.tile, [shape for part in host.vae.parts for shape in part.caches]
    whole = tile == (height, width)
    guided = f"guidance {host.guidance:g}, two runs a step" if host.guidance > 1 else "no guidance"
    return [
        f"video: {host.frames} frames of {host.width}x{host.height} pixels, {host.fps:g} a second",
        f"text: {host.text.tokens} tokens; table {table.rows:,} x {table.columns}, {table.dtype},"
        f" {megabytes(table.bytes)}, read row by row",
        f"latents: {frames} frames of {channels} x {height}x{width} = {host.denoiser.tokens:,}"
        " tokens of the denoiser",
        f"steps: {host.schedule.steps} of {host.schedule.sampler}, {guided}",
        f"video decoder: a latent frame at a time, {'whole' if whole else f'tiles of {tile}'};"
        f" {len(caches)} arrays kept between them",
    ]


def export_text(plan: DiffusionPlan) -> str:
    """Size of the output, for the last line of `export`."""
    host = plan.host
    return f"videos of {host.frames} frames of {host.width}x{host.height}"
