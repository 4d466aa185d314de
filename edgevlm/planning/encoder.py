"""The plan of an encoder of images or clips with one embedding, and of its text encoder, if any.

1. The recipe asks for nothing that only a language model has.
2. The target has the recipe's schemes and backend.
3. The family describes the checkpoint: numbers alone. The factor of a likeness is a weight, and is
   read from its file.
4. A method of site `vision` says how many tokens it leaves after each layer.
5. The model is built without memory; stages are cut into blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from edgevlm.bundle.functions import Block
from edgevlm.bundle.host import Embedding
from edgevlm.bundle.kinds import encoder as kind
from edgevlm.bundle.kinds.encoder import EncoderHost, EncoderPlan
from edgevlm.bundle.kinds.shared.text import TextHost
from edgevlm.bundle.plan import FORMAT_VERSION, Plan, Requires, SiteTokens, Source
from edgevlm.errors import ModelError, PlanError, RecipeError
from edgevlm.exporters.contract import Target
from edgevlm.graphs.blocks import build_encoder
from edgevlm.graphs.embedders import EmbedderParts
from edgevlm.graphs.merging import merge
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.family import EmbedderDescription, TextSpec
from edgevlm.models.own_processors import check_tokenizer, check_views, special_tokens
from edgevlm.models.shared.preprocessing import defaults
from edgevlm.planning.blocks import Stored, encoder_shape, finished, stage_blocks
from edgevlm.planning.methods import choose_encoder_method, choose_picker
from edgevlm.planning.target import (
    check_table_scheme,
    checked_target,
    required_backend,
    table_format,
)
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS

# Fields of a recipe that a language model alone has a use for.
OF_LANGUAGE = ("tokens", "context", "tiles", "chunk", "speculate", "layers")
QUANTIZED = ("vision", "text", "embed")


@dataclass(frozen=True)
class EncoderPlanned:
    """A plan with what it was made from, for the steps that follow it.

    `method` is that of site `vision`, or None; `tokens` are those before the encoder's first layer
    and after each, empty without a method.
    """

    plan: EncoderPlan
    checkpoint: Checkpoint
    description: EmbedderDescription
    method: Any
    tokens: tuple[int, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan must know beside its numbers."""
        notes = self.checkpoint.notes(self.plan.recipe)
        if self.checkpoint.weightless and (self.description.scale or self.description.bias):
            notes = (f"{notes[0]}; 1 and 0 stand for the factor and the shift of a likeness",)
        image = self.description.image
        return *notes, *defaults(self.checkpoint.processor(image.subject), image)

    @property
    def tokenizer_json(self) -> str:
        """The checkpoint's tokenizer.json as it is; padding and truncation are set at run time."""
        return (self.checkpoint.folder / "tokenizer.json").read_text("utf-8")

    def parts(self, model: Any) -> EmbedderParts:
        """The model as static modules, with its method."""
        return _merged(self.checkpoint.parts(model, self.description), self)

    def build(self, block: Block, parts: EmbedderParts) -> nn.Module:
        """The module of a block."""
        return build_encoder(block, parts)

    def measured(self, model: Any, parts: EmbedderParts, progress: object) -> EncoderPlanned:
        """The same: no constant takes the weights."""
        return self


@dataclass(frozen=True)
class _Method:
    """A method of site `vision` with the tokens that it leaves."""

    method: Any
    tokens: tuple[int, ...]
    sites: tuple[SiteTokens, ...]


def make_plan(recipe: Recipe, checkpoint: Checkpoint) -> EncoderPlanned:
    """Work out every number of a bundle; `edgevlm.planning.plan.make_plan` says what is raised."""
    _check(recipe)
    target = checked_target(recipe, QUANTIZED)
    backend = required_backend(recipe, target)
    description: EmbedderDescription = checkpoint.describe(recipe)
    description = replace(description, image=choose_picker(recipe, description.image))
    check_views(checkpoint, description.image)
    frames = description.image.views
    chosen = _Method(*choose_encoder_method(recipe, description.encoder, frames))
    if chosen.method is not None and chosen.method.joins:  # all frames in one call
        image = replace(description.image, depth=description.image.frames)
        description = replace(description, image=image)
    parts = _merged(checkpoint.parts(checkpoint.empty_model(), description), chosen)
    scale, bias = _likeness(checkpoint, description)
    host = EncoderHost(
        image=description.image,
        encoder=encoder_shape(parts.encoder, view_tokens=1),
        size=description.size,
        text=_text(recipe, target, checkpoint, description.text),
        scale=scale,
        bias=bias,
        scores=description.scores,
        classes=description.classes,
    )
    plan = Plan(
        format_version=FORMAT_VERSION,
        kind=checkpoint.family.KIND,
        source=Source(recipe.model, recipe.revision, checkpoint.model_type, checkpoint.config_hash),
        recipe=recipe,
        sites=chosen.sites,
        host=host,
        blocks=_blocks(host, recipe.block_size_bytes, parts, Stored(target, recipe)),
        requires=Requires((*target.requires.versions, *backend)),
    )
    return EncoderPlanned(plan, checkpoint, description, chosen.method, chosen.tokens)


def _check(recipe: Recipe) -> None:
    """Refuse what asks for a language model.

    Raises:
        RecipeError: Naming the option.
    """
    plain = Recipe()
    for name in OF_LANGUAGE:
        if getattr(recipe, name) != getattr(plain, name):
            raise RecipeError(
                f"--{name} is for models with a language model: an image encoder gives one"
                " embedding of one view"
            )
    for choice in recipe.methods:
        site = METHODS.site_of(choice.name, choice.site)
        if site not in ("input", "vision"):
            works = " (it works there: add @vision)" * ("vision" in METHODS.sites_of(choice.name))
            raise RecipeError(
                f"method '{choice.name}' is of site '{site}', an image encoder has sites"
                f" 'vision' and, of clips, 'input' alone{works}"
            )


def _merged(parts: EmbedderParts, chosen: EncoderPlanned | _Method) -> EmbedderParts:
    return replace(parts, encoder=merge(parts.encoder, chosen.method, chosen.tokens))


def _likeness(checkpoint: Checkpoint, description: EmbedderDescription) -> tuple[float, float]:
    """Factor and shift of a likeness; 1 and 0 where there are no weights.

    Raises:
        ModelError: If one is no number that a manifest takes.
    """
    scale, bias = description.scale, description.bias
    if checkpoint.weightless:
        scale = bias = ""
    logarithm = checkpoint.number(scale) if scale else 0.0
    shift = checkpoint.number(bias) if bias else 0.0
    most = math.log(kind.MOST_LOGIT)
    for name, value, bound in ((scale, logarithm, most), (bias, shift, kind.MOST_LOGIT)):
        if not abs(value) <= bound:  # NaN is not either
            raise ModelError(
                f"'{checkpoint.model}': the weight '{name}' is {value:g}, expected {-bound:.4g} to"
                f" {bound:.4g}"
            )
    return math.exp(logarithm), shift


def _text(
    recipe: Recipe, target: Target, checkpoint: Checkpoint, text: TextSpec | None
) -> TextHost | None:
    """What the program around the text encoder needs; its special tokens are the tokenizer's.

    Raises:
        ModelError: If the tokenizer cannot be loaded.
        PlanError: If its tokens are not those that the model reads.
    """
    if text is None:
        return None
    tokens = special_tokens(checkpoint, text)
    check_tokenizer(checkpoint, text)
    if text.reads_end:
        _check_end(tokens.end_id, tokens.most if text.end_id is None else text.end_id)
    tokens.check(text)
    check_table_scheme(recipe, target, tied=False)
    return TextHost(
        tokens=text.tokens,
        layers=text.layers,
        embedding=Embedding(text.vocabulary, text.width, table_format(recipe, target, tied=False)),
        pad_id=tokens.pad_id,
        end_id=tokens.end_id,
        reads_end=text.reads_end,
        lower_case=text.lower_case,
    )


def _check_end(end: int | None, read: int) -> None:
    """Refuse a tokenizer that ends a text, here an empty one, otherwise than the model reads it.

    Raises:
        PlanError: With both tokens.
    """
    if end != read:
        ends = "no token" if end is None else f"token {end}"
        raise PlanError(
            f"the tokenizer ends a text with {ends}, and the model reads token {read}; take the"
            " tokenizer that it was trained with, or correct text_config.eos_token_id"
        )


def _blocks(
    host: EncoderHost, limit: int, parts: EmbedderParts, stored: Stored
) -> tuple[Block, ...]:
    """All blocks, those of the image encoder first."""
    blocks = stage_blocks("vision", parts.encoder.modules, limit, stored)
    if parts.text is not None:
        blocks += stage_blocks("text", parts.text.modules, limit, stored)
    return finished(blocks, kind, host, lambda block: build_encoder(block, parts))
