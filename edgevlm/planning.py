"""Make a plan: recipe and checkpoint in, all the numbers out, before any graph exists.

The model is built without memory (meta device): its shapes are the checkpoint's own.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer

from edgevlm.compress._primitives import VisualShape
from edgevlm.errors import ModelError, PlanError, RecipeError
from edgevlm.layout import make_layout
from edgevlm.models._checkpoint import Checkpoint
from edgevlm.models._family import Description, Pieces
from edgevlm.models._merging import merge
from edgevlm.models._signals import observe
from edgevlm.plan import (
    FORMAT_VERSION,
    Embedding,
    Host,
    KVCache,
    Plan,
    Requires,
    Rope,
    SiteTokens,
    Source,
)
from edgevlm.recipe import MethodChoice, Recipe, parse_method
from edgevlm.registry import METHODS, SITE_CLASSES, TARGETS, sites_of
from edgevlm.shapes import make_blocks

# Room for a question and an answer beside the image when the recipe names no context.
ROOM_TOKENS = 512
# A question of this length is planned for when the chunk is chosen.
QUESTION_TOKENS = 32
# A longer call gains little on a CPU, and what fills up the last one costs as much as a real row.
CHUNK_TOKENS = 256


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made from, for the steps that follow it."""

    plan: Plan
    checkpoint: Checkpoint
    description: Description
    method: Any
    encoder_method: Any = None
    encoder_tokens: tuple[int, ...] = ()

    def pieces(self, model: Any) -> Pieces:
        """The model as static pieces, with its methods: tokens merge, and signals are given."""
        found: Pieces = self.checkpoint.family.pieces(model, self.description)
        merged = merge(found, self.encoder_method, self.encoder_tokens)
        return observe(merged, self.method.signals)


def make_plan(recipe: Recipe, checkpoint: Checkpoint) -> Planned:
    """Work out every number of a bundle.

    Raises:
        RecipeError: For an unknown target, method or scheme, or wrong method options.
        PlanError: For a budget, context or grid that cannot work.
    """
    target = TARGETS.load(recipe.target)
    if recipe.quantize not in target.SCHEMES:
        known = ", ".join(target.SCHEMES)
        raise RecipeError(
            f"scheme '{recipe.quantize}' is not one of target '{recipe.target}'; it has: {known}"
        )
    config = checkpoint.config
    description = _describe(checkpoint, recipe)
    method, site, positions = choose_method(recipe, description.shape)
    model = checkpoint.empty_model()
    pieces = checkpoint.family.pieces(model, description)
    inside, counts, sites = choose_encoder_method(recipe, pieces)
    pieces = observe(merge(pieces, inside, counts), method.signals)
    text = config.text_config
    vocabulary = pieces.table[0].shape[0]
    layout = make_layout(
        description,
        checkpoint.chat_template(),
        _tokenizer(checkpoint),
        vocabulary,
        reduced=site.tokens_out < site.tokens_in,
    )
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    draft = Plan(
        format_version=FORMAT_VERSION,
        kind="vlm",
        source=Source(
            recipe.model, recipe.revision, checkpoint.config.model_type, checkpoint.config_hash
        ),
        recipe=recipe,
        sites=(*sites, site),
        layout=layout,
        host=Host(
            image=description.image,
            embedding=Embedding(
                rows=sum(t.shape[0] for t in pieces.table),
                columns=text.hidden_size,
                dtype="f32",
                tied=pieces.head is pieces.table[0],
            ),
            rope=_rope(text, pieces),
            kv=KVCache(target.KV_FORM, len(pieces.decoder), text.num_key_value_heads, head_size, 0),
            chunk=0,
            positions=positions,
            vocabulary=vocabulary,
            stop_ids=_stop_ids(checkpoint),
        ),
        blocks=(),
        requires=Requires(target.REQUIRES.versions),
    )
    chunk = recipe.chunk or _chunk(draft.prompt_tokens + QUESTION_TOKENS)
    context = _context(recipe, draft, chunk, text.max_position_embeddings)
    kv = replace(draft.host.kv, tokens=context)
    draft = replace(draft, host=replace(draft.host, chunk=chunk, kv=kv))
    blocks = make_blocks(
        draft.host, recipe.block_size_bytes, site.tokens_out, pieces, description, method
    )
    whole = replace(draft, blocks=blocks)
    return Planned(whole, checkpoint, description, method, inside, counts)


def _describe(checkpoint: Checkpoint, recipe: Recipe) -> Description:
    try:
        made: Description = checkpoint.family.describe(
            checkpoint.config, checkpoint.processor(), recipe
        )
    except (AttributeError, TypeError, KeyError, ZeroDivisionError) as cause:
        name = checkpoint.model
        raise ModelError(f"'{name}': config.json is not that of the family: {cause}") from cause
    return made


def choose_method(recipe: Recipe, shape: VisualShape) -> tuple[Any, SiteTokens, str]:
    """The method of site `tokens` with its counts, and the position policy.

    Without `--method`, `--tokens K` means `divprune`; without either, `identity`.
    """
    default = "identity" if recipe.tokens is None else "divprune"
    choice = _choices(recipe).get("tokens") or parse_method(default)
    options = dict(choice.options)
    positions = str(options.pop("positions", "contiguous"))
    if positions not in ("contiguous", "original"):
        raise RecipeError(f"positions must be 'contiguous' or 'original', got '{positions}'")
    method = _make(choice, "tokens", options, ("positions",), tokens=recipe.tokens)
    return method, SiteTokens("tokens", choice.name, shape.tokens, method.plan(shape)), positions


def choose_encoder_method(
    recipe: Recipe, pieces: Pieces
) -> tuple[Any, tuple[int, ...], tuple[SiteTokens, ...]]:
    """The method of site `vision`, encoder tokens before the first layer and after each, counts.

    Without such a method: None and nothing.
    """
    choice = _choices(recipe).get("vision")
    if choice is None:
        return None, (), ()
    method = _make(choice, "vision", choice.options)
    first: Any = pieces.vision[0]
    extra = int(pieces.class_token)
    patches, layers = first.position.weight.shape[0] - extra, len(pieces.vision) - 2
    left = (patches, *method.plan(patches, layers))
    counts = tuple(count + extra for count in left)
    return method, counts, (SiteTokens("vision", choice.name, patches, left[-1]),)


def _choices(recipe: Recipe) -> dict[str, MethodChoice]:
    """The recipe's methods by site; one a site."""
    found: dict[str, MethodChoice] = {}
    for text in recipe.methods:
        choice = parse_method(text)
        sites = sites_of(METHODS.load(choice.name))
        site = choice.site or sites[0]
        if site not in sites:
            raise RecipeError(
                f"method '{choice.name}' works at site {' and '.join(map(repr, sites))},"
                f" not '{site}'"
            )
        if site in found:
            raise RecipeError(f"one method a site: '{found[site].name}' and '{choice.name}'")
        found[site] = choice
    return found


def _make(
    choice: MethodChoice,
    site: str,
    options: dict[str, int | float | str],
    further: tuple[str, ...] = (),
    **fixed: Any,
) -> Any:
    """The method with its options; `further` are those that the plan itself takes."""
    kind = getattr(METHODS.load(choice.name), SITE_CLASSES[site])
    known = [p for p in inspect.signature(kind).parameters if p not in fixed]
    for name in options:
        if name not in known:
            raise RecipeError(
                f"method '{choice.name}' has no option '{name}'; it has: "
                + ", ".join([*known, *further])
            )
    try:
        return kind(**fixed, **options)
    except (TypeError, ValueError) as cause:
        raise RecipeError(f"method '{choice.name}': {cause}") from cause


def _context(recipe: Recipe, draft: Plan, chunk: int, most: int) -> int:
    needed = draft.prompt_tokens + 1
    wanted = recipe.context or min(draft.prompt_tokens + ROOM_TOKENS, most)
    if wanted > most:
        raise PlanError(f"context {wanted} is more than the model's {most} positions")
    if wanted <= needed:
        raise PlanError(
            f"context {wanted} is too short: one image and the chat format take"
            f" {draft.prompt_tokens} tokens; give more --context or fewer --tokens"
        )
    rounded = -(-wanted // chunk) * chunk
    if rounded > most:
        rounded -= chunk
    if rounded <= needed:
        raise PlanError(
            f"chunk {chunk} does not fit the model's {most} positions; give a smaller one"
        )
    return rounded


def _chunk(prompt: int) -> int:
    calls = -(-prompt // CHUNK_TOKENS)
    return -(-prompt // (calls * 8)) * 8


def _rope(text: Any, pieces: Pieces) -> Rope:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = text.rope_parameters["rope_type"]
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise PlanError(f"rotary scaling '{kind}' changes with the length; it cannot be static")
    module: Any = pieces.language_model.rotary_emb
    make = (
        module.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    )
    frequencies, scaling = make(text, device=torch.device("cpu"))
    return Rope(tuple(float(f) for f in frequencies), float(scaling))


def _stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    for value in (
        checkpoint.document("generation_config.json").get("eos_token_id"),
        getattr(checkpoint.config.text_config, "eos_token_id", None),
    ):
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) for i in ids):
                raise ModelError(
                    f"'{checkpoint.model}': eos_token_id must be a number, got {value!r}"
                )
            return tuple(sorted(set(ids)))
    return ()


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    except Exception as cause:
        raise ModelError(f"'{checkpoint.model}': tokenizer.json is not valid: {cause}") from cause
