"""Make a plan: recipe and checkpoint in, all the numbers out, before any graph exists.

The model is built without memory (meta device): its shapes are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer

from edgevlm.bundle.plan import (
    FORMAT_VERSION,
    Embedding,
    Host,
    KVCache,
    Plan,
    Requires,
    Rope,
    Source,
)
from edgevlm.errors import ModelError, PlanError, RecipeError
from edgevlm.exporters.contract import Target, find_target
from edgevlm.graphs.merging import merge
from edgevlm.graphs.pruning import Pruning
from edgevlm.graphs.signals import observe
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.family import Description, ModelParts
from edgevlm.planning.blocks import Stored, make_blocks
from edgevlm.planning.methods import choose_decoder_method, choose_encoder_method, choose_method
from edgevlm.planning.prompt import make_layout
from edgevlm.recipe import Recipe

# Stages that have schemes; `reduce` chooses, and has no weights.
QUANTIZED = ("vision", "embed", "decoder", "head")
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
    pruning: Pruning | None = None

    def pieces(self, model: Any) -> ModelParts:
        """The model as static pieces, with its methods: tokens merge, and signals are given."""
        found: ModelParts = self.checkpoint.family.pieces(model, self.description)
        merged = merge(found, self.encoder_method, self.encoder_tokens)
        return replace(observe(merged, self.method.signals), pruning=self.pruning)


def _check_calibration(recipe: Recipe, schemes: tuple[str, ...]) -> None:
    """Pictures are there if and only if a scheme rounds by what was seen."""
    wanted = [scheme for scheme in recipe.quantize.names if scheme in schemes]
    if wanted and recipe.calibrate is None:
        raise RecipeError(
            f"scheme '{wanted[0]}' rounds by what pictures gave: add --calibrate N or a path"
        )
    if recipe.calibrate is not None and not wanted:
        known = ", ".join(schemes) or "none here"
        raise RecipeError(f"nothing to calibrate in '{recipe.quantize}'; schemes with it: {known}")


def _backends(recipe: Recipe, target: Target) -> tuple[tuple[str, str], ...]:
    """The backend as a requirement, for targets that have several, with the schemes that it takes.

    Raises:
        RecipeError: If there is no such backend, or it does not take a scheme.
    """
    name = target.backend(recipe.backend)
    if name not in target.backends:
        if not name:
            return ()
        known = ", ".join(target.backends) or "none to choose from"
        raise RecipeError(f"'{recipe.target}' has no backend '{name}'; it has: {known}")
    for scheme in recipe.quantize.names:
        if scheme not in target.backends[name]:
            known = ", ".join(target.backends[name])
            raise RecipeError(f"backend '{name}' takes no scheme '{scheme}'; it takes: {known}")
    return (("backend", name),)


def make_plan(recipe: Recipe, checkpoint: Checkpoint) -> Planned:
    """Work out every number of a bundle.

    Raises:
        RecipeError: For an unknown target, method or scheme, or wrong method options.
        PlanError: For a budget, context or grid that cannot work.
    """
    target = find_target(recipe.target)
    for stage, scheme in (("", recipe.quantize.default), *recipe.quantize.stages):
        if scheme in target.refused:
            raise RecipeError(f"scheme '{scheme}' does not pay: {target.refused[scheme]}")
        if scheme not in target.schemes:
            known = ", ".join(target.schemes)
            raise RecipeError(
                f"scheme '{scheme}' is not one of target '{recipe.target}'; it has: {known}"
            )
        if stage not in ("", *QUANTIZED):
            raise RecipeError(
                f"'{stage}' is not a stage with weights; those are: {', '.join(QUANTIZED)}"
            )
    _check_calibration(recipe, target.calibrated)
    backends = _backends(recipe, target)
    config = checkpoint.config
    description = _describe(checkpoint, recipe)
    method, site, positions = choose_method(recipe, description.shape)
    model = checkpoint.empty_model()
    pieces = checkpoint.family.pieces(model, description)
    inside, counts, sites = choose_encoder_method(recipe, pieces)
    pieces = observe(merge(pieces, inside, counts), method.signals)
    text, tied = config.text_config, pieces.head is pieces.table[0]
    own_table = not tied and target.table_format(target.schemes[-1]) != "f32"
    if "embed" in dict(recipe.quantize.stages) and not own_table:
        raise RecipeError(
            "stage 'embed' has no scheme of its own here: "
            + ("its table is the head's" if tied else f"its table is f32 for '{recipe.target}'")
        )
    vocabulary = pieces.table[0].shape[0]
    layout = make_layout(
        description,
        checkpoint.chat_template(),
        _tokenizer(checkpoint),
        vocabulary,
        reduced=site.tokens_out < site.tokens_in,
    )
    rope = _rope(text, pieces)
    pruning, leaving = choose_decoder_method(recipe, pieces, site.tokens_out, rope)
    if pruning and getattr(method, "calibrate", False):
        raise PlanError(
            f"{leaving[0].method} at site decoder makes its own masks, so calibrate=size cannot be"
        )
    if pruning and pruning.method.contiguous and positions == "original":
        raise PlanError(f"{leaving[0].method} numbers rows anew, so positions=original cannot be")
    if pruning and recipe.speculate:
        raise PlanError(
            f"{leaving[0].method} at site decoder takes single rows after the prompt, so there is"
            " nothing to speculate with"
        )
    pieces = replace(pieces, pruning=pruning)
    gone = tuple(pruning.gone(i) for i in range(len(pieces.decoder))) if pruning else ()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    draft = Plan(
        format_version=FORMAT_VERSION,
        kind="vlm",
        source=Source(
            recipe.model, recipe.revision, checkpoint.config.model_type, checkpoint.config_hash
        ),
        recipe=recipe,
        sites=(*sites, site, *leaving),
        layout=layout,
        host=Host(
            image=description.image,
            embedding=Embedding(
                rows=sum(t.shape[0] for t in pieces.table),
                columns=text.hidden_size,
                dtype=target.table_format(recipe.scheme("head" if tied else "embed")),
                tied=tied,
            ),
            rope=rope,
            kv=KVCache(
                target.kv_form,
                len(pieces.decoder),
                text.num_key_value_heads,
                head_size,
                tokens=0,
                dtype=target.kv_dtype,
                gone=gone,
            ),
            chunk=0,
            positions=positions,
            vocabulary=vocabulary,
            stop_ids=_stop_ids(checkpoint),
            check=recipe.speculate,
        ),
        blocks=(),
        requires=Requires((*target.requires.versions, *backends)),
    )
    chunk = recipe.chunk or _chunk(draft.prompt_tokens + QUESTION_TOKENS, whole=bool(pruning))
    if pruning and chunk <= draft.prompt_tokens:
        raise PlanError(
            f"chunk {chunk} is too short: visual tokens leave inside the language model, so a"
            f" prompt is one call; one image and the chat format take {draft.prompt_tokens} tokens"
        )
    context = _context(recipe, draft, chunk, text.max_position_embeddings)
    kv = replace(draft.host.kv, tokens=context)
    draft = replace(draft, host=replace(draft.host, chunk=chunk, kv=kv))
    blocks = make_blocks(
        draft.host,
        recipe.block_size_bytes,
        site.tokens_out,
        pieces,
        description,
        method,
        Stored(target, recipe),
    )
    whole = replace(draft, blocks=blocks)
    return Planned(whole, checkpoint, description, method, inside, counts, pruning)


def _describe(checkpoint: Checkpoint, recipe: Recipe) -> Description:
    try:
        made: Description = checkpoint.family.describe(
            checkpoint.config, checkpoint.processor(), recipe
        )
    except (AttributeError, TypeError, KeyError, ZeroDivisionError) as cause:
        name = checkpoint.model
        raise ModelError(f"'{name}': config.json is not that of the family: {cause}") from cause
    return made


def _context(recipe: Recipe, draft: Plan, chunk: int, most: int) -> int:
    needed = draft.prompt_tokens + 1
    if recipe.speculate:
        needed += QUESTION_TOKENS + recipe.speculate
    wanted = recipe.context or min(draft.prompt_tokens + ROOM_TOKENS, most)
    if wanted > most:
        raise PlanError(f"context {wanted} is more than the model's {most} positions")
    if wanted <= needed:
        more = ", and a checked answer some more" if recipe.speculate else ""
        raise PlanError(
            f"context {wanted} is too short: one image and the chat format take"
            f" {draft.prompt_tokens} tokens{more}; give more --context or fewer --tokens"
        )
    if draft.host.kv.gone:  # one chunk holds the prompt; later turns go row by row
        return min(max(wanted, chunk), most)
    rounded = -(-wanted // chunk) * chunk
    if rounded > most:
        rounded -= chunk
    if rounded <= needed:
        raise PlanError(
            f"chunk {chunk} does not fit the model's {most} positions; give a smaller one"
        )
    return rounded


def _chunk(prompt: int, whole: bool) -> int:
    calls = 1 if whole else -(-prompt // CHUNK_TOKENS)
    return -(-prompt // (calls * 8)) * 8


def _rope(text: Any, pieces: ModelParts) -> Rope:
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
