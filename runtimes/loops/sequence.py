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
from edgevlm.runtimes.loops.tables import Table

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Visual:
    """Outputs of `reduce` for one image or clip, and the times of its frames in seconds."""

    tokens: Floats  # [K, C]
    positions: Integers  # [K]
    times: tuple[float, ...] = ()
    duration: float = 0.0
    log_sizes: Floats | None = None  # [K], where attention is calibrated (`VlmHost.calibrated`)


@dataclass(frozen=True)
class PromptRows:
    """Rows [n, C] of a prompt, their rotary positions [n], and indices of the visual rows.

    `bias` [n] is added to the attention scores of each row; None is 0. `ids` are the token of each
    row, -1 for a visual one.
    """

    rows: Floats
    positions: Integers
    visual: tuple[int, ...] = ()
    bias: Floats | None = None
    ids: tuple[int, ...] = ()


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
    rows: list[Floats] = []
    positions: list[Integers] = []
    visual_rows: list[int] = []
    log_sizes: list[Floats] = []
    token_ids: list[int] = []
    original = plan.host.positions == "original"
    at, text = first_position, ""

    def put(new: Floats, offsets: Integers | None = None, span: int | None = None) -> None:
        nonlocal at
        steps = np.arange(len(new), dtype=np.int32) if offsets is None else offsets
        rows.append(new)
        positions.append(at + steps)
        at += len(new) if span is None else span

    def put_text() -> None:
        """Tokenize adjacent texts together, as a word may begin in one and end in the next."""
        nonlocal text
        if text:
            put_ids(tokenizer.encode(text, add_special_tokens=False).ids)
        text = ""

    def put_ids(ids: Sequence[int]) -> None:
        token_ids.extend(ids)
        put(table[list(ids)])

    def walk(items: Sequence[LayoutItem], visual: Visual | None) -> None:
        nonlocal text
        for item in items:
            if item.kind in ("ids", "visual"):
                put_text()
            if item.kind == "ids":
                put_ids(item.ids)
            elif item.kind == "image":
                for picture in visuals:
                    walk(plan.host.layout.image, picture)
            elif item.kind == "visual" and visual is not None:
                selected = (visual.positions >= item.start) & (visual.positions < item.stop)
                offsets = visual.positions[selected] - item.start if original else None
                before = sum(map(len, rows))
                token_ids.extend([-1] * int(selected.sum()))
                visual_rows.extend(range(before, before + int(selected.sum())))
                if visual.log_sizes is not None:
                    log_sizes.append(visual.log_sizes[selected])
                put(visual.tokens[selected], offsets, item.stop - item.start if original else None)
            else:
                text += item.prefix + _text(item, question, visual) + item.suffix

    walk(items, None)
    put_text()
    hidden = np.concatenate([np.zeros((0, table.shape[1]), np.float32), *rows])
    bias = None
    if log_sizes:
        bias = np.zeros(len(hidden), np.float32)
        bias[visual_rows] = np.concatenate(log_sizes)
    all_positions = np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32)
    return PromptRows(hidden, all_positions, tuple(visual_rows), bias, tuple(token_ids))


def _text(item: LayoutItem, question: str, visual: Visual | None) -> str:
    if item.kind == "text":
        return ""
    if item.kind == "user_text" or visual is None:
        return question
    if item.kind == "timestamp":
        seconds = int(visual.times[item.start])
        return f"{seconds // 60:02d}:{seconds % 60:02d}"
    seconds = int(visual.duration)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


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
    return state


def causal_mask(first: int, rows: int, length: int) -> Floats:
    """Additive mask [1, 1, rows, length]: 0 where a row may attend, -1e4 elsewhere."""
    columns, lines = np.arange(length)[None], np.arange(first, first + rows)[:, None]
    return np.where(columns <= lines, 0.0, -1e4).astype(np.float32)[None, None]
