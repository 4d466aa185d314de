"""From the items of a layout to rows of the embedding table and their positions.

Visual tokens go where their kept position says: a method may choose freely across tiles, and each
token is still placed between the markers of its own tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.bundle.host import LayoutItem
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.runtimes.loops.spelling import Slot, Visual, spell
from edgevlm.runtimes.loops.tables import Table

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True)
class PromptRows:
    """Rows [n, C] of a prompt, their rotary positions [n], and indices of the visual rows.

    `bias` [n] is added to the attention scores of each row; None is 0. `ids` are the token of each
    row, -1 for a visual one. `signal` is the encoder's, for each visual row, where a method inside
    the decoder needs it.
    """

    rows: Floats
    positions: Integers
    visual: tuple[int, ...] = ()
    bias: Floats | None = None
    ids: tuple[int, ...] = ()
    signal: Floats | None = None


def assemble(
    plan: VlmPlan,
    items: Sequence[LayoutItem],
    table: Table,
    tokenizer: Tokenizer,
    question: str,
    visuals: Sequence[Visual],
    first_position: int,
) -> PromptRows:
    """Rows and rotary positions of a turn.

    Args:
        plan: The manifest.
        items: `layout.prompt`, `layout.text` or `layout.turn`.
        table: The embedding table [rows, C].
        tokenizer: The bundle's tokenizer.
        question: The user's text.
        visuals: One for each image or clip of this turn.
        first_position: Rotary position of the first row.
    """
    rows: list[Floats] = [np.zeros((0, table.shape[1]), np.float32)]
    positions: list[Integers] = []
    log_sizes: list[Floats] = []
    signals: list[Floats] = []
    token_ids: list[int] = []
    original = plan.host.positions == "original"
    at = first_position
    for part in spell(items, plan.host.layout, tokenizer, question, visuals):
        if isinstance(part, Slot):
            new, span = part.visual.tokens[part.selected], int(part.selected.sum())
            steps = np.arange(span, dtype=np.int32)
            if original:
                steps = part.visual.positions[part.selected] - part.item.start
                span = part.item.stop - part.item.start
            if part.visual.log_sizes is not None:
                log_sizes.append(part.visual.log_sizes[part.selected])
            if part.visual.visual_signal is not None:
                signals.append(part.visual.visual_signal[part.selected])
            token_ids.extend([-1] * len(new))
        else:
            new, span, steps = table[part], len(part), np.arange(len(part), dtype=np.int32)
            token_ids.extend(part)
        rows.append(new)
        positions.append(at + steps)
        at += span
    hidden = np.concatenate(rows)
    visual_rows = [row for row, token in enumerate(token_ids) if token == -1]
    bias = None
    if log_sizes:
        bias = np.zeros(len(hidden), np.float32)
        bias[visual_rows] = np.concatenate(log_sizes)
    all_positions = np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32)
    signal = np.concatenate(signals) if signals else None
    return PromptRows(hidden, all_positions, tuple(visual_rows), bias, tuple(token_ids), signal)


def rotary_tables(plan: VlmPlan, positions: Integers) -> tuple[Floats, Floats]:
    """cos and sin [n, D] of rotary positions, both halves equal, in float32 as the model does."""
    frequencies = np.asarray(plan.host.rope.inverse_frequencies, np.float32)
    angles = positions.astype(np.float32)[:, None] * frequencies[None]
    angles = np.concatenate((angles, angles), axis=1)
    scaling = np.float32(plan.host.rope.scaling)
    return np.cos(angles) * scaling, np.sin(angles) * scaling


def prompt_state(plan: VlmPlan, prompt: PromptRows) -> dict[str, NDArray[Any]]:
    """Inputs of `prefill` for a whole prompt in one call, padded with zeros."""
    count, chunk = len(prompt.rows), plan.host.chunk
    cos, sin = rotary_tables(plan, prompt.positions)
    state: dict[str, NDArray[Any]] = {
        "hidden": np.zeros((1, chunk, prompt.rows.shape[1]), np.float32),
        "cos": np.zeros((1, chunk, plan.host.kv.head_size), np.float32),
        "sin": np.zeros((1, chunk, plan.host.kv.head_size), np.float32),
        "visual_rows": np.asarray([prompt.visual], np.int32),
        "last": np.asarray([count - 1], np.int32),
    }
    for name, rows in (("hidden", prompt.rows), ("cos", cos), ("sin", sin)):
        state[name][0, :count] = rows
    if prompt.signal is not None:
        state["visual_signal"] = prompt.signal[None]
    return state


def causal_mask(first: int, rows: int, length: int) -> Floats:
    """Additive mask [1, 1, rows, length]: 0 where a row may attend, -1e4 elsewhere."""
    columns, lines = np.arange(length)[None], np.arange(first, first + rows)[:, None]
    return np.where(columns <= lines, 0.0, -1e4).astype(np.float32)[None, None]
