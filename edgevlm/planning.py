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
from edgevlm.recipe import Recipe, parse_method
from edgevlm.registry import METHODS, TARGETS
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

    def pieces(self, model: Any) -> Pieces:
        """The model as static pieces that give what the method asks of the encoder."""
        found: Pieces = self.checkpoint.family.pieces(model, self.description)
        return observe(found, self.method.signals)


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
    pieces = observe(checkpoint.family.pieces(model, description), method.signals)
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
        sites=(site,),
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
    return Planned(replace(draft, blocks=blocks), checkpoint, description, method)


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
    if len(recipe.methods) > 1:
        raise RecipeError(f"one method is supported, got {len(recipe.methods)}: {recipe.methods}")
    default = "identity" if recipe.tokens is None else "divprune"
    choice = parse_method(recipe.methods[0] if recipe.methods else default)
    module = METHODS.load(choice.name)
    if choice.site not in (None, module.SITE):
        raise RecipeError(
            f"method '{choice.name}' works at site '{module.SITE}', not '{choice.site}'"
        )
    options = dict(choice.options)
    positions = str(options.pop("positions", "contiguous"))
    if positions not in ("contiguous", "original"):
        raise RecipeError(f"positions must be 'contiguous' or 'original', got '{positions}'")
    known = [p for p in inspect.signature(module.Method).parameters if p != "tokens"]
    for name in options:
        if name not in known:
            raise RecipeError(
                f"method '{choice.name}' has no option '{name}'; it has: "
                + ", ".join([*known, "positions"])
            )
    try:
        method = module.Method(tokens=recipe.tokens, **options)
    except (TypeError, ValueError) as cause:
        raise RecipeError(f"method '{choice.name}': {cause}") from cause
    kept = method.plan(shape)
    return method, SiteTokens(module.SITE, choice.name, shape.tokens, kept), positions


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
