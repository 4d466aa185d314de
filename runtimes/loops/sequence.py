"""From the layout's parts to rows of the embedding table and their positions.

Visual tokens go where their kept position says: a method may choose freely across tiles, and each
token still stands between the markers of its own tile.
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
    """What `reduce` gave for one image or clip, and the times of its frames in seconds."""

    tokens: Floats  # [K, C]
    positions: Integers  # [K]
    times: tuple[float, ...] = ()
    duration: float = 0.0
    log_sizes: Floats | None = None  # [K], where attention is calibrated


@dataclass(frozen=True)
class PromptRows:
    """A run of the sequence: rows [n, C], their rotary positions [n], which rows are visual.

    `bias` [n] is what attention to each row gets; None is nothing. `ids` are the token of each row,
    -1 for a visual one.
    """

    rows: Floats
    positions: Integers
    visual: tuple[int, ...] = ()
    bias: Floats | None = None
    ids: tuple[int, ...] = ()


def assemble(
    plan: VlmPlan,
    parts: Sequence[LayoutItem],
    table: Table,
    tokenizer: Tokenizer,
    question: str,
    visuals: Sequence[Visual],
    first_position: int,
) -> PromptRows:
    """Rows and rotary positions of a turn.

    Args:
        plan: The manifest.
        parts: `layout.prompt` or `layout.turn`.
        table: The embedding table [rows, C].
        tokenizer: The bundle's tokenizer.
        question: The user's text.
        visuals: One for each image or clip of this turn.
        first_position: Rotary position of the first row.
    """
    rows: list[Floats] = []
    positions: list[Integers] = []
    seen: list[int] = []
    weights: list[Floats] = []
    said: list[int] = []
    original = plan.host.positions == "original"
    at, text = first_position, ""

    def put(new: Floats, offsets: Integers | None = None, span: int | None = None) -> None:
        nonlocal at
        steps = np.arange(len(new), dtype=np.int32) if offsets is None else offsets
        rows.append(new)
        positions.append(at + steps)
        at += len(new) if span is None else span

    def put_text() -> None:
        """Neighbouring texts are one to a tokenizer: a word may begin in one, end in the next."""
        nonlocal text
        if text:
            put_ids(tokenizer.encode(text, add_special_tokens=False).ids)
        text = ""

    def put_ids(ids: Sequence[int]) -> None:
        said.extend(ids)
        put(table[list(ids)])

    def walk(parts: Sequence[LayoutItem], visual: Visual | None) -> None:
        nonlocal text
        for part in parts:
            if part.kind in ("ids", "visual"):
                put_text()
            if part.kind == "ids":
                put_ids(part.ids)
            elif part.kind == "image":
                for picture in visuals:
                    walk(plan.host.layout.image, picture)
            elif part.kind == "visual" and visual is not None:
                here = (visual.positions >= part.start) & (visual.positions < part.stop)
                offsets = visual.positions[here] - part.start if original else None
                before = sum(map(len, rows))
                said.extend([-1] * int(here.sum()))
                seen.extend(range(before, before + int(here.sum())))
                if visual.log_sizes is not None:
                    weights.append(visual.log_sizes[here])
                put(visual.tokens[here], offsets, part.stop - part.start if original else None)
            else:
                text += part.prefix + _text(part, question, visual) + part.suffix

    walk(parts, None)
    put_text()
    whole = np.concatenate([np.zeros((0, table.shape[1]), np.float32), *rows])
    bias = None
    if weights:
        bias = np.zeros(len(whole), np.float32)
        bias[seen] = np.concatenate(weights)
    placed = np.concatenate([np.zeros(0, np.int32), *positions]).astype(np.int32)
    return PromptRows(whole, placed, tuple(seen), bias, tuple(said))


def _text(part: LayoutItem, question: str, visual: Visual | None) -> str:
    if part.kind == "text":
        return ""
    if part.kind == "user_text" or visual is None:
        return question
    if part.kind == "timestamp":
        seconds = int(visual.times[part.start])
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


def prompt_state(plan: VlmPlan, piece: PromptRows) -> dict[str, NDArray[Any]]:
    """What `prefill` takes of a prompt in one call, filled up with zeros."""
    count, chunk = len(piece.rows), plan.host.chunk
    cos, sin = rotary_tables(plan, piece.positions)
    state: dict[str, NDArray[Any]] = {
        "hidden": np.zeros((1, chunk, piece.rows.shape[1]), np.float32),
        "cos": np.zeros((1, chunk, plan.host.kv.head_size), np.float32),
        "sin": np.zeros((1, chunk, plan.host.kv.head_size), np.float32),
        "visual_rows": np.asarray([piece.visual], np.int32),
        "last": np.asarray([count - 1], np.int32),
    }
    for name, rows in (("hidden", piece.rows), ("cos", cos), ("sin", sin)):
        state[name][0, :count] = rows
    return state


def causal_mask(first: int, rows: int, length: int) -> Floats:
    """Additive mask [1, 1, rows, length]: 0 where a row may look, -1e4 elsewhere."""
    columns, lines = np.arange(length)[None], np.arange(first, first + rows)[:, None]
    return np.where(columns <= lines, 0.0, -1e4).astype(np.float32)[None, None]
