"""What a vlm is compared with beside its blocks: the checkpoint's own software, in transformers.

prompt      ids of an odd question, and the number of visual tokens, by its processor
stop ids    those of `model.generation_config`
context     its own forward over as many rows as the cache has, in one pass: a sliding window,
rotary tables that change with the length, a scale or a cap of the logits that the
plan does not know of make another answer late in a conversation, and nowhere else
forward     its own forward of a picture and a question, where the family is not sure of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.graphs.layers import LayerCall
from edgevlm.graphs.parts import DecoderParts, ModelParts, position_ids
from edgevlm.libraries import silent
from edgevlm.models.family import token_ids
from edgevlm.models.processor import load_processor, missing_library
from edgevlm.models.weights.paging import in_memory
from edgevlm.parity.calls import BlockCalls
from edgevlm.parity.checks import (
    Check,
    context_check,
    forward_check,
    preprocessing_check,
    prompt_check,
    stop_check,
)
from edgevlm.parity.compare import difference
from edgevlm.parity.own.forward import forward_rel_error
from edgevlm.parity.own.preprocessing import of_grid, preprocessing_error
from edgevlm.planning.own_prompt import compare_prompts
from edgevlm.planning.vlm import VlmPlanned
from edgevlm.runtimes.loops.sequence import (
    PromptRows,
    call_rows,
    causal_mask,
    layer_rows,
    rotary_tables,
    text_positions,
)

# Rows at the end of the context whose logits are compared.
LAST_ROWS = 16


@dataclass(frozen=True)
class OwnComparison:
    """What the checkpoint's own software says, as `vlm.VlmVerification` has it, with its checks."""

    preprocessing_error: float | None
    token_ids_equal: float
    context_rel_error: float
    checks: tuple[Check, ...]


def compare_own(
    calls: BlockCalls,
    model: Any,
    tokenizer: Tokenizer,
    prompt: PromptRows,
    question: str,
    photo: Image.Image,
) -> OwnComparison:
    """Ask the checkpoint's own software about a photo.

    Args:
        calls: The bundle and its plan.
        model: transformers' model.
        tokenizer: The bundle's tokenizer.
        prompt: Rows of a first turn.
        question: Its question.
        photo: A photo of any size.
    """
    planned, parts, bundled = calls.planned, calls.parts, calls.bundle.plan
    assert isinstance(planned, VlmPlanned)
    checkpoint, image = planned.checkpoint, bundled.host.image
    missing = missing_library(checkpoint)
    pixels = None if missing else preprocessing_error(checkpoint, image, photo)
    said = compare_prompts(
        planned.description,
        load_processor(checkpoint, planned.speller.own),
        checkpoint.family.processor_options(image),
        planned.speller,
        bundled.host.layout,
        tokenizer,
        # At its size: a processor may choose another for a picture of the same shape.
        of_grid(photo, image).resize((image.columns * image.width, image.rows * image.height)),
    )
    stops = own_stop_ids(model, checkpoint.folder)
    context = context_rel_error(model, parts, planned.plan, prompt)
    forward = forward_rel_error(planned, model, parts, tokenizer, question, photo)
    asked = (
        preprocessing_check(pixels, missing),
        prompt_check(said.equal, said.difference),
        stop_check(bundled.host.stop_ids, stops),
        context_check(context, bundled.host.states.tokens),
        *(() if forward is None else (forward_check(forward),)),
    )
    return OwnComparison(pixels, said.equal, context, asked)


def own_stop_ids(model: Any, folder: Path) -> tuple[int, ...]:
    """Stop tokens of a model, set up as `from_pretrained` does for a folder."""
    with silent():
        model.adjust_generation_fn(
            generation_config=None,
            from_auto_class=False,
            from_pipeline=None,
            pretrained_model_name_or_path=str(folder),
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision="main",
            subfolder="",
            trust_remote_code=False,
        )
    return token_ids(model.generation_config.eos_token_id)


def context_rel_error(model: Any, parts: ModelParts, plan: VlmPlan, prompt: PromptRows) -> float:
    """Difference of the last logits where the whole context is full, ours from the model's own.

    Args:
        model: transformers' model.
        parts: Our modules over its weights.
        plan: The plan.
        prompt: The rows of a first turn; words at random, the same each time, fill the rest.
    """
    length, decoder, count = plan.host.states.tokens, parts.decoder, len(parts.head)
    words = np.random.default_rng(0).integers(0, count, max(0, length - len(prompt.rows)))
    rows = torch.cat((torch.from_numpy(prompt.rows), parts.words(words)))[:length]
    after = text_positions(plan, prompt.next, len(words))
    positions = np.concatenate((prompt.positions, after))[:length]
    groups = None
    if prompt.groups is not None:
        groups = np.pad(prompt.groups, (0, len(words)), constant_values=-1)[:length]
    full = PromptRows(rows.numpy(), positions, prompt.next + len(words), groups=groups)
    expected = model(
        **decoder.embedded(rows),
        position_ids=position_ids(positions),
        use_cache=False,
        logits_to_keep=LAST_ROWS,
        **decoder.masking(length, groups),
    ).logits[0, -LAST_ROWS:]
    hidden = decoder.norm(_decoded(decoder, plan, full)[:, -LAST_ROWS:])
    return difference(parts.scores(hidden[0]).numpy(), expected.numpy())[0]


def _decoded(decoder: DecoderParts, plan: VlmPlan, prompt: PromptRows) -> torch.Tensor:
    """Rows [1, T, C] after all layers; the weights of one are in memory at a time."""
    states, width, pasts = plan.host.states, decoder.spec.width, list[Sequence[torch.Tensor]]()
    rows = torch.from_numpy(prompt.rows[None, :, :width])
    for index, (layer, rope) in enumerate(zip(decoder.layers, plan.host.layer_ropes, strict=True)):
        tables = [torch.from_numpy(t)[None] for t in rotary_tables(plan, prompt.positions, rope)]
        state = states.of(index)
        past: Sequence[torch.Tensor] = [
            torch.zeros(shape) for shape in state.with_rows(rows.shape[1]).shapes
        ]
        if state.source is not None:
            past = pasts[state.source]
        with in_memory(layer):
            rows, past = _through_layer(layer, plan, rows, {rope: tables}, past, prompt, index)
        pasts.append(past if index in states.read_by_others else ())
    return rows


def _through_layer(
    layer: Any,
    plan: VlmPlan,
    rows: torch.Tensor,
    tables: Mapping[int, Sequence[torch.Tensor]],
    past: Sequence[torch.Tensor],
    prompt: PromptRows,
    index: int,
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Rows [1, T, C] after one layer, chunk by chunk, and its state."""
    length, chunks, first, groups = rows.shape[1], [], 0, prompt.groups
    embeds = torch.from_numpy(prompt.rows[None, :, : plan.host.embedding.columns])
    own = layer_rows(plan, (index, index + 1), prompt.rows).values()
    row = next((torch.from_numpy(one)[None] for one in own), None)
    while first < length:
        count = call_rows(groups, first, min(plan.host.chunk, length - first))
        span = slice(first, first + count)
        together = None if groups is None else groups[span]
        mask = torch.from_numpy(causal_mask(first, count, length, together))
        at = torch.tensor([first], dtype=torch.int32)
        turned = {rope: [table[:, span] for table in pair] for rope, pair in tables.items()}
        here = None if row is None else row[:, span]
        call = LayerCall(turned, mask, at, embeds=embeds[:, span], row=here)
        chunk, *after = layer.step(rows[:, span], call, past)
        past = after or past
        chunks.append(chunk)
        first = span.stop
    return torch.cat(chunks, dim=1), past
