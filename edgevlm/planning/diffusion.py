"""The plan of a diffusion pipeline: text encoder, denoiser and video decoder, and the steps.

The steps are those of the checkpoint's own scheduler (`models.pipelines.schedules`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from edgevlm.bundle.functions import Block
from edgevlm.bundle.host import Embedding
from edgevlm.bundle.kinds import diffusion as kind
from edgevlm.bundle.kinds.diffusion import DiffusionHost, DiffusionPlan
from edgevlm.bundle.kinds.shared.text import TextHost
from edgevlm.bundle.kinds.shared.video import MOST_STEPS, VaePart, VaeShape
from edgevlm.bundle.plan import FORMAT_VERSION, Plan, Requires, Source
from edgevlm.errors import PlanError, RecipeError
from edgevlm.graphs.denoising.parts import DiffusionParts, build_diffusion
from edgevlm.models.own_processors import special_tokens
from edgevlm.models.pipelines.checkpoint import PipelineCheckpoint
from edgevlm.models.pipelines.magnitudes import magnitudes, prompts
from edgevlm.models.pipelines.schedules import schedule_of
from edgevlm.models.shared.diffusion.description import DiffusionDescription
from edgevlm.planning.blocks import Stored, finished, stage_blocks
from edgevlm.planning.target import (
    check_table_scheme,
    checked_target,
    required_backend,
    table_format,
)
from edgevlm.recipe import Recipe
from edgevlm.registry import RULES
from edgevlm.runtimes.steps.run import make_rules

# Fields of a recipe that have no meaning here.
OF_OTHERS = ("tokens", "methods", "context", "tiles", "chunk", "speculate", "layers", "stream")
QUANTIZED = ("text", "denoiser", "vae", "embed")


@dataclass(frozen=True)
class DiffusionPlanned:
    """A plan with what it was made from, for the steps that follow it."""

    plan: DiffusionPlan
    checkpoint: PipelineCheckpoint
    description: DiffusionDescription

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan must know beside its numbers."""
        return self.checkpoint.notes(self.plan.recipe)

    @property
    def tokenizer_json(self) -> str:
        """The pipeline's tokenizer.json as it is; padding and truncation are set at run time."""
        path = self.checkpoint.tokenizer_folder / "tokenizer.json"
        return path.read_text("utf-8")

    def parts(self, model: Any) -> DiffusionParts:
        """The model as static modules."""
        found: DiffusionParts = self.checkpoint.parts(model, self.description)
        return found

    def build(self, block: Block, parts: DiffusionParts) -> nn.Module:
        """The module of a block."""
        return build_diffusion(block, parts, self.plan.host)

    def measured(
        self, model: Any, parts: DiffusionParts, progress: Callable[[str], None]
    ) -> DiffusionPlanned:
        """The same with the magnitudes of its steps, where a rule reads them."""
        plan, host = self.plan, self.plan.host
        if not any(RULES.load(rule.name).Rule.measured for rule in plan.recipe.step_rules):
            return self
        texts = prompts(self.checkpoint, model, host.text.tokens)
        found = magnitudes(host, parts.denoiser, texts, progress)
        schedule = replace(host.schedule, magnitudes=found)
        return replace(self, plan=replace(plan, host=replace(host, schedule=schedule)))


def make_plan(recipe: Recipe, checkpoint: PipelineCheckpoint) -> DiffusionPlanned:
    """Work out every number of a bundle; `edgevlm.planning.plan.make_plan` says what is raised."""
    _check(recipe)
    target = checked_target(recipe, QUANTIZED)
    backend = required_backend(recipe, target)
    description: DiffusionDescription = checkpoint.describe(recipe)
    parts: DiffusionParts = checkpoint.parts(checkpoint.empty_model(), description)
    check_table_scheme(recipe, target, tied=False)
    schedule = schedule_of(checkpoint, description.steps)
    known = replace(schedule, magnitudes=(1.0,) * schedule.steps)  # measured by the export
    make_rules(recipe.step_rules, known)  # refused now rather than at run time
    spec, tokens = description.text, special_tokens(checkpoint, description.text)
    tokens.check(spec)
    if tokens.end_id is None:
        raise PlanError("the tokenizer ends a text with no token, and the text encoder reads one")
    tile, stride = description.tile
    host = DiffusionHost(
        text=TextHost(
            tokens=spec.tokens,
            layers=len(parts.text),
            embedding=Embedding(
                spec.vocabulary, spec.width, table_format(recipe, target, tied=False)
            ),
            pad_id=tokens.pad_id,
            end_id=tokens.end_id,
            reads_end=False,
            lower_case=False,
        ),
        denoiser=description.denoiser,
        vae=VaeShape(tile, stride, description.scale, _vae_parts(parts, description)),
        schedule=schedule,
        guidance=description.guidance,
        frames=description.frames,
        height=description.height,
        width=description.width,
        fps=description.fps,
    )
    plan = Plan(
        format_version=FORMAT_VERSION,
        kind=kind.__name__.rpartition(".")[2],
        source=Source(recipe.model, recipe.revision, checkpoint.model_type, checkpoint.config_hash),
        recipe=recipe,
        sites=(),
        host=host,
        blocks=_blocks(host, recipe.block_size_bytes, parts, Stored(target, recipe)),
        requires=Requires((*target.requires.versions, *backend)),
    )
    return DiffusionPlanned(plan, checkpoint, description)


def _check(recipe: Recipe) -> None:
    """Refuse what asks for a language model, or a value without a meaning.

    Raises:
        RecipeError: Naming the option.
    """
    plain = Recipe()
    for name in OF_OTHERS:
        if getattr(recipe, name) != getattr(plain, name):
            option = "method" if name == "methods" else name
            raise RecipeError(f"--{option} is for models that read pictures; a video is made here")
    if recipe.steps is not None and recipe.steps > MOST_STEPS:
        raise PlanError(f"{recipe.steps} steps, expected at most {MOST_STEPS}")


def _vae_parts(parts: DiffusionParts, description: DiffusionDescription) -> tuple[VaePart, ...]:
    """What each part of the video decoder gives and keeps, found by running them without data."""
    (tile, _), shape = description.tile, description.denoiser.latents
    first = further = torch.empty(1, shape[0], 1, *tile, device="meta")
    found = []
    with torch.no_grad(), torch.device("meta"):
        for part in parts.vae:
            module = part.to("meta")
            first, *caches = module(first)
            further, *again = module(further, *caches)
            if [each.shape for each in again] != [each.shape for each in caches]:
                raise PlanError("the video decoder keeps another size from latent frame to frame")
            shapes = tuple(tuple(cache.shape[1:]) for cache in caches)
            found.append(VaePart(tuple(first.shape[1:]), tuple(further.shape[1:]), shapes))
    return tuple(found)


def _blocks(
    host: DiffusionHost, limit: int, parts: DiffusionParts, stored: Stored
) -> tuple[Block, ...]:
    """All blocks in the order in which they run; embeddings and head of the denoiser are alone."""
    blocks = stage_blocks("text", parts.text, limit, stored)
    *layers, head = parts.denoiser
    cut = stage_blocks("denoiser", layers, limit, stored, border=1)
    last = len(layers)
    size = stored.module(head, "denoiser")
    cut.append(Block(f"denoiser-{len(cut)}", "denoiser", (last, last + 1), size, ()))
    blocks += cut + stage_blocks("vae", parts.vae, limit, stored)
    return finished(blocks, kind, host, lambda block: build_diffusion(block, parts, host))
