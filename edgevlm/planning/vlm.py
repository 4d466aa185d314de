"""The plan of a vision language model.

1. The target has the recipe's schemes and backend.
2. The family describes the checkpoint for the recipe: numbers alone.
3. The methods of each site say how many tokens they leave.
4. The model is built without memory (meta device), so that its shapes are the checkpoint's own.
5. The chat template becomes the layout of the sequence; from its length follow chunk and context.
6. Stages are cut into blocks, with the shapes, bytes and FLOPs of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.functions import Block
from edgevlm.bundle.host import LEVELS, ImageSpec, Layout
from edgevlm.bundle.kinds.shared.decoder import most_together
from edgevlm.bundle.kinds.shared.states import States
from edgevlm.bundle.kinds.vlm import VlmHost, VlmPlan
from edgevlm.bundle.plan import FORMAT_VERSION, Plan, Requires, SiteTokens, Source
from edgevlm.errors import ModelError
from edgevlm.exporters.contract import Target
from edgevlm.graphs.blocks import build, signal_names
from edgevlm.graphs.merging import merge
from edgevlm.graphs.parts import DecoderSpec, ModelParts
from edgevlm.graphs.pruning import Pruning
from edgevlm.graphs.signals import observe, reads_last_layer
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.family import Description
from edgevlm.models.processor import load_processor, load_tokenizer, missing_library, stop_ids
from edgevlm.models.shared.preprocessing import defaults
from edgevlm.models.speller import Speller
from edgevlm.planning.blocks import Stored, encoder_shape
from edgevlm.planning.calls import (
    check_layers,
    check_stream,
    check_visual,
    chunk_tokens,
    context_tokens,
    stream_spec,
)
from edgevlm.planning.layout import make_layout
from edgevlm.planning.methods import (
    check_pruning,
    check_recurrent,
    choose_decoder_method,
    choose_encoder_method,
    choose_method,
    choose_picker,
    choose_stream,
    global_times,
)
from edgevlm.planning.own_prompt import compare_prompts
from edgevlm.planning.prompt import render_prompts
from edgevlm.planning.sites.vision import check_signals
from edgevlm.planning.target import check_attention, checked_target, host_tables, required_backend
from edgevlm.planning.vlm_blocks import make_blocks
from edgevlm.recipe import Recipe

# Stages that have schemes; `reduce` chooses, and has no weights.
QUANTIZED = ("vision", "embed", "decoder", "head")


@dataclass(frozen=True)
class ChosenMethods:
    """The methods of a recipe, one a site, with the tokens that each leaves.

    Attributes:
        tokens: Method of site `tokens`, which every plan has.
        reduction: Its counts.
        positions: `contiguous` or `original`, of the visual tokens that are kept.
        encoder: Method of site `vision`, or None.
        encoder_tokens: Tokens before the encoder's first layer and after each; empty without one.
        pruning: Numbers of the method of site `decoder`, or None.
        sites: Counts of all sites, in the order of the model.
        levels: Features of further levels of the encoder, by name, whatever the methods.
        stream: What keeps the tokens of a frame of a stream, or None.
    """

    tokens: Any
    reduction: SiteTokens
    positions: str
    encoder: Any
    encoder_tokens: tuple[int, ...]
    pruning: Pruning | None
    sites: tuple[SiteTokens, ...]
    levels: tuple[str, ...]
    stream: Any = None

    @property
    def entering(self) -> tuple[int, ...]:
        """Visual tokens that enter each layer of the decoder and come out; empty if none leave."""
        pruning = self.pruning
        if pruning is None:
            return ()
        return tuple(pruning.entering(layer) for layer in range(len(pruning.counts) + 1))

    @property
    def inside(self) -> str:
        """What makes masks or drops rows inside the decoder, by name; empty if nothing does."""
        if self.pruning is not None:
            return f"{self.sites[-1].method} at site decoder"
        return "calibrate=size" if getattr(self.tokens, "calibrate", False) else ""

    @property
    def passed_on(self) -> tuple[str, ...]:
        """What the decoder needs of the encoder beside features: a method's signals, and levels."""
        return (*(() if self.pruning is None else self.pruning.signals), *self.levels)

    @property
    def signals(self) -> tuple[str, ...]:
        """Signals of the encoder that a method needs, in the order in which `reduce` takes them."""
        return signal_names(self.tokens.signals, self.passed_on)

    @property
    def global_times(self) -> float:
        """What a global token receives at least, of the method that asks for such tokens."""
        times = global_times(self.tokens, self.pruning)
        return times[0] if times else 0.0

    def applied(self, parts: ModelParts, image: ImageSpec) -> ModelParts:
        """The parts of a model with its methods: tokens merge, signals are given, tokens leave."""
        merging = merge(parts.encoder, self.encoder, self.encoder_tokens)
        merged = replace(parts, encoder=merging)
        observed = observe(merged, self.signals, self.global_times, image)
        return replace(observed, pruning=self.pruning, stream=self.stream)


@dataclass(frozen=True)
class VlmPlanned:
    """A plan with what it was made from, for the steps that follow it."""

    plan: VlmPlan
    checkpoint: Checkpoint
    description: Description
    methods: ChosenMethods
    speller: Speller

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan must know beside its numbers."""
        checkpoint = self.checkpoint
        of_family = getattr(checkpoint.family, "notes", lambda config, description: ())
        library = missing_library(checkpoint)
        unasked = (
            f"preprocessing is the family's: the checkpoint's image processor needs '{library}',"
            " which is not installed, and could not be asked"
        )
        return (
            *checkpoint.notes(self.plan.recipe),
            *of_family(checkpoint.config, self.description),
            *defaults(checkpoint.processor(), self.description.image),
            *([unasked] if library else []),
        )

    @property
    def tokenizer_json(self) -> str:
        """Text of the bundle's tokenizer.json: the tokenizer as transformers has it."""
        return str(self.speller.bundled.to_str(pretty=True))

    @property
    def method(self) -> Any:
        """The method of site `tokens`."""
        return self.methods.tokens

    @property
    def encoder_method(self) -> Any:
        """The method of site `vision`, or None."""
        return self.methods.encoder

    def parts(self, model: Any) -> ModelParts:
        """The model as static modules, with its methods."""
        parts = self.checkpoint.parts(model, self.description)
        return self.methods.applied(parts, self.description.image)

    def own_levels(self, model: Any, pixel_values: Tensor) -> dict[str, Tensor]:
        """Features [1, N, C] of each further level by the model's own encoder, by name."""
        if not self.methods.levels:
            return {}
        levels = self.checkpoint.family.reference_levels(model, pixel_values, self.description)
        # A trial of the first layers of the decoder has use for fewer.
        return {name: level[None] for name, level in zip(self.methods.levels, levels, strict=False)}

    def build(self, block: Block, parts: ModelParts) -> nn.Module:
        """The module of a block."""
        return build(block, parts, self.method, self.description.shape)

    def measured(self, model: Any, parts: ModelParts, progress: object) -> VlmPlanned:
        """The same: no constant takes the weights."""
        return self


def make_plan(recipe: Recipe, checkpoint: Checkpoint) -> VlmPlanned:
    """Work out every number of a bundle; `edgevlm.planning.plan.make_plan` says what is raised."""
    target = checked_target(recipe, QUANTIZED)
    backend = required_backend(recipe, target)
    checkpoint = checkpoint.cut(recipe.layers)
    recipe = replace(recipe, layers=checkpoint.layers)  # all its layers are no trial
    description: Description = checkpoint.describe(recipe)
    description = replace(description, image=choose_picker(recipe, description.image))
    check_attention(recipe, target, description.decoder)
    methods = choose_methods(recipe, description)
    counts = methods.reduction
    check_visual(counts.tokens_in, counts.tokens_out, description.decoder)
    checkpoint = replace(checkpoint, all_layers=reads_last_layer(methods.signals))
    model = checkpoint.empty_model()
    parts = methods.applied(checkpoint.parts(model, description), description.image)
    embedding, per_layer = host_tables(recipe, target, parts, description.decoder)
    vocabulary = parts.head.shape[0]
    token = description.visual_token or description.placeholder
    speller = Speller(load_tokenizer(checkpoint), vocabulary, token)
    layout = _layout(checkpoint, description, methods, speller)
    chunk, states = _calls(recipe, target, description.decoder, methods, layout)
    host = VlmHost(
        image=description.image,
        encoder=encoder_shape(parts.encoder, description.view_tokens, methods.signals),
        visual_tokens=methods.reduction.tokens_out,
        calibrated=bool(getattr(methods.tokens, "calibrate", False)),
        layout=layout,
        embedding=embedding,
        per_layer=per_layer,
        ropes=description.decoder.ropes,
        layer_ropes=tuple(layer.table for layer in description.decoder.layers),
        first_position=description.decoder.first_position,
        mask=description.decoder.mask,
        residual_streams=description.decoder.residual_streams,
        states=states,
        entering=methods.entering,
        carried="" if methods.pruning is None else methods.pruning.carried,
        levels=description.decoder.levels,
        chunk=chunk,
        check=recipe.speculate,
        positions=methods.positions,
        vocabulary=vocabulary,
        stop_ids=stop_ids(checkpoint, vocabulary),
        stream=stream_spec(recipe, description.decoder),
    )
    check_stream(host)
    plan = Plan(
        format_version=FORMAT_VERSION,
        kind=checkpoint.family.KIND,
        source=Source(
            recipe.model, recipe.revision, checkpoint.family_name, checkpoint.config_hash
        ),
        recipe=recipe,
        sites=methods.sites,
        host=host,
        blocks=make_blocks(
            host,
            recipe.block_size_bytes,
            parts,
            description.shape,
            methods.tokens,
            Stored(target, recipe),
        ),
        requires=Requires((*target.requires.versions, *backend)),
    )
    return VlmPlanned(plan, checkpoint, description, methods, speller)


def choose_methods(recipe: Recipe, description: Description) -> ChosenMethods:
    """The methods of all sites, refused where two do not go together.

    Raises:
        RecipeError: For an unknown method or wrong options.
        PlanError: For a number of tokens that cannot be, or two methods that cannot both be.
    """
    method, reduction, positions = choose_method(recipe, description.shape, description.decoder)
    encoder, encoder_tokens, before = choose_encoder_method(recipe, description.encoder)
    pruning, after = choose_decoder_method(recipe, description.decoder, reduction.tokens_out)
    sites = (*before, reduction, *after)
    levels = LEVELS[: len(description.decoder.levels)]
    stream = choose_stream(recipe, description)
    chosen = ChosenMethods(
        method, reduction, positions, encoder, encoder_tokens, pruning, sites, levels, stream
    )
    check_signals(reduction.method, method.signals, description.encoder)
    check_recurrent(recipe, method, pruning, description.decoder)
    if pruning:
        check_signals(after[0].method, pruning.signals, description.encoder)
        check_pruning(recipe, chosen, pruning, after[0].method)
    return chosen


def _layout(
    checkpoint: Checkpoint, description: Description, methods: ChosenMethods, speller: Speller
) -> Layout:
    """The layout, of which a prompt is that of the checkpoint's own processor.

    Raises:
        ModelError: If it is another, or the model looks for another token than the processor
            writes.
    """
    processor = load_processor(checkpoint, speller.own)
    counts = methods.reduction
    reduced = counts.tokens_out < counts.tokens_in and not methods.tokens.keeps_rows
    layout = make_layout(description, render_prompts(description, processor), speller, reduced)
    # A processor may write a clip as pictures.
    keys = [f"{kind}_token_id" for kind in dict.fromkeys((description.content_type, "image"))]
    ids = [getattr(checkpoint.config, key, None) for key in keys]
    if ids[0] is not None and speller.slot not in ids:
        raise ModelError(
            f"'{checkpoint.model}': '{speller.placeholder}' has id {speller.slot}, and config.json"
            f" says {keys[0]} {ids[0]}; mend the one that is wrong"
        )
    image = description.image
    picture = Image.new("RGB", (image.columns * image.width, image.rows * image.height))
    options = checkpoint.family.processor_options(image)
    found = compare_prompts(
        description, processor, options, speller, layout, speller.bundled, picture
    )
    if found.difference:
        raise ModelError(f"'{checkpoint.model}': {found.difference}")
    return layout


def _calls(
    recipe: Recipe,
    target: Target,
    decoder: DecoderSpec,
    methods: ChosenMethods,
    layout: Layout,
) -> tuple[int, States]:
    """Rows of a `prefill` call, and the states of the layers."""
    pruning, visual = methods.pruning, methods.reduction.tokens_out
    prompt = layout.prompt_tokens(visual)
    single_call = pruning is not None or decoder.mask == "prefix"
    picture = most_together(layout, visual) if decoder.mask == "pictures" else 0
    chunk = chunk_tokens(recipe, prompt, single_call, picture)
    context = context_tokens(recipe, prompt, chunk, decoder, single_call, picture)
    check_layers(decoder, methods.inside, chunk, context)
    # No state of one block, where others read it.
    shared = {layer for pair in decoder.sources.items() for layer in pair}
    states = (
        cache.state(
            context - (pruning.gone(layer) if pruning else 0),
            "f32" if layer in shared else target.kv_dtype,
        )
        for layer, cache in enumerate(decoder.caches)
    )
    return chunk, States.made(target.kv_form, context, states)
