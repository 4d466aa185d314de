"""A diffusion model is shown prompts, noise and the latents of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgevlm.evaluation.examples import Example
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.pipelines.checkpoint import PipelineCheckpoint
from edgevlm.planning.diffusion import make_plan
from edgevlm.quantization.calibrate import Presenter
from edgevlm.recipe import Recipe


def presenter(recipe: Recipe, checkpoint: Checkpoint, model: Any) -> Presenter:
    """Shows noise and the latents that a step makes of it to `model`; its own layers see them."""
    assert isinstance(checkpoint, PipelineCheckpoint)
    planned = make_plan(Recipe(recipe.model, frames=recipe.frames, size=recipe.size), checkpoint)
    host, family = planned.plan.host, checkpoint.family
    times = host.schedule.timesteps

    def show(example: Example) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.full((1, host.text.tokens), host.text.pad_id)
        ids[0, 0] = host.text.end_id or 0
        mask = torch.zeros_like(ids)
        mask[0, 0] = 1
        with torch.no_grad():
            text = family.reference_text(model, ids, mask)
            latents = torch.randn(1, *host.denoiser.latents, generator=generator)
            for time in (times[0], times[len(times) // 2], times[-1]):
                family.reference_velocity(model, latents, torch.tensor([time]), text)
            family.reference_frames(model, latents[:, :, :2])

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Presenter(layers, show)
