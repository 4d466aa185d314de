"""From the items of a layout to rows of the embedding table and their positions.

Visual tokens go where their kept position says: a method may choose freely across tiles, and each
token is still placed between the markers of its own tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.bundle.host import LEVELS, LayoutItem
from edgevlm.bundle.kinds.shared.decoder import EMBEDS, layer_inputs, rotary_inputs
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.runtimes.loops.spelling import Marker, Slot, Visual, spell
from edgevlm.runtimes.loops.tables import Table

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
FURTHEST = 2**24  # steps of a visual token in time, whatever a container says of its length


@dataclass(frozen=True)
class PromptRows:
    """Rows of a prompt, or of a part of it.

    Attributes:
        rows: Rows [n, C]; with a second table [n, C + E], its rows behind.
        positions: Their rotary positions [n, axes].
        next: Rotary position of a generated token, the same on every axis: behind all before. Text
            behind a clip begins below the time of its last frames.
        visual: Indices of the visual rows.
        bias: Added to the attention scores of each row [n]; None is 0.
        ids: The token of each row, -1 for a visual one.
        signal: The encoder's, for each visual row, where a method inside the decoder needs it.
        levels: Features of further levels of the encoder, for each visual row, [L, k, C].
        groups: The group of each row [n]: rows of one group see each other, those of none (-1) see
            what is before them; None says that no row has one.
    """

    rows: Floats
    positions: Integers
    next: int
    visual: tuple[int, ...] = ()
    bias: Floats | None = None
    ids: tuple[int, ...] = ()
    signal: Floats | None = None
    levels: Floats | None = None
    groups: Integers | None = None

    def after(self, count: int) -> PromptRows:
        """What follows the first rows of a prompt without a bias or a signal."""
        visual = tuple(row - count for row in self.visual if row >= count)
        rows, positions = self.rows[count:], self.positions[count:]
        groups = None if self.groups is None else self.groups[count:]
        levels, ids = None, self.ids[count:]
        if self.levels is not None and visual:
            levels = self.levels[:, -len(visual) :]
        return PromptRows(rows, positions, self.next, visual, ids=ids, levels=levels, groups=groups)


def text_positions(plan: VlmPlan, first: int, count: int) -> Integers:
    """Rotary positions [count, axes] of words, from `first`: the same on every axis."""
    return _on_all_axes(first + np.arange(count, dtype=np.int32), plan)


def text_rows(plan: VlmPlan, rows: Floats, first: int = 0) -> PromptRows:
    """Rows of words alone, from rotary position `first`."""
    return PromptRows(rows, text_positions(plan, first, len(rows)), first + len(rows))


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
    positions: list[Integers] = [text_positions(plan, 0, 0)]
    log_sizes: list[Floats] = []
    signals: list[Floats] = []
    levels: list[Floats] = []
    token_ids: list[int] = []
    before: list[int] | Slot | None = None
    at = behind = first_position
    for part in spell(items, plan.host.layout, tokenizer, question, visuals):
        if isinstance(part, Slot):
            new = joined_rows(plan, part.visual.tokens[part.selected], table)
            steps, span, extent = _visual_steps(plan, part)
            if part.visual.log_sizes is not None:
                log_sizes.append(part.visual.log_sizes[part.selected])
            if part.visual.visual_signal is not None:
                signals.append(part.visual.visual_signal[part.selected])
            if part.visual.levels is not None:
                levels.append(part.visual.levels[:, part.selected])
            token_ids.extend([-1] * len(new))
        else:
            new, (steps, span) = table[part], _word_steps(plan, part, before)
            extent = int(steps.max(initial=-1)) + 1
            token_ids.extend(part)
        rows.append(new)
        positions.append(np.maximum(at + steps, 0))
        behind = max(behind, at + extent)
        at, before = at + span, part
    hidden = np.concatenate(rows)
    visual_rows = [row for row, token in enumerate(token_ids) if token == -1]
    bias = None
    if log_sizes:
        bias = np.zeros(len(hidden), np.float32)
        bias[visual_rows] = np.concatenate(log_sizes)
    return PromptRows(
        hidden,
        np.concatenate(positions).astype(np.int32),
        max(at, behind),
        tuple(visual_rows),
        bias,
        tuple(token_ids),
        np.concatenate(signals) if signals else None,
        np.concatenate(levels, axis=1) if levels else None,
        _groups(plan, np.asarray(token_ids) == -1),
    )


def joined_rows(plan: VlmPlan, tokens: Floats, table: Table) -> Floats:
    """Visual tokens [k, C] as rows: with the one row that the second table has for them behind."""
    if plan.host.per_layer is None:
        return tokens
    behind = table[plan.host.per_layer.visual_row][tokens.shape[1] :]
    return np.concatenate((tokens, np.broadcast_to(behind, (len(tokens), len(behind)))), axis=1)


def row_inputs(plan: VlmPlan, rows: Floats) -> dict[str, Floats]:
    """Rows of tokens as all blocks take them, [n, C] by input: the first block's hidden, embeds."""
    embeds = rows[:, : plan.host.embedding.columns]
    return {"hidden": embeds} if plan.host.per_layer is None else {"hidden": embeds, EMBEDS: embeds}


def layer_rows(plan: VlmPlan, span: tuple[int, int], rows: Floats) -> dict[str, Floats]:
    """What each layer of a block gets of the second table, [n, E / layers] by input."""
    if plan.host.per_layer is None:
        return {}
    behind = rows[:, plan.host.embedding.columns :]
    (start, stop), layers = span, len(plan.host.states.layers)
    parts = np.split(behind, layers, axis=1)[start:stop]
    return dict(zip(layer_inputs(stop - start), parts, strict=True))


def rotary_tables(plan: VlmPlan, positions: Integers, rope: int = 0) -> tuple[Floats, Floats]:
    """cos and sin [n, D] of rotary positions [n, axes], both halves equal.

    In float32, as the model does. Each frequency turns by one axis. `rope` counts the tables.
    """
    table = plan.host.ropes[rope]
    frequencies = np.asarray(table.inverse_frequencies, np.float32)
    angles = positions.astype(np.float32)[:, list(table.frequency_axes)] * frequencies[None]
    angles = np.concatenate((angles, angles), axis=1)
    scaling = np.float32(table.scaling)
    return np.cos(angles) * scaling, np.sin(angles) * scaling


def every_table(plan: VlmPlan, positions: Integers) -> dict[str, Floats]:
    """All rotary tables [n, D] of positions, by the inputs that take them."""
    made: dict[str, Floats] = {}
    for rope in range(len(plan.host.ropes)):
        made |= zip(rotary_inputs([rope]), rotary_tables(plan, positions, rope), strict=True)
    return made


def prompt_state(plan: VlmPlan, prompt: PromptRows) -> dict[str, NDArray[Any]]:
    """Inputs of `prefill` for a whole prompt in one call, padded with zeros."""
    count, chunk = len(prompt.rows), plan.host.chunk
    cos, sin = rotary_tables(plan, prompt.positions)
    state: dict[str, NDArray[Any]] = {
        "hidden": np.zeros((1, chunk, prompt.rows.shape[1]), np.float32),
        "cos": np.zeros((1, chunk, plan.host.rope.size), np.float32),
        "sin": np.zeros((1, chunk, plan.host.rope.size), np.float32),
        "visual_rows": np.asarray([prompt.visual], np.int32),
        "last": np.asarray([count - 1], np.int32),
    }
    for name, rows in (("hidden", prompt.rows), ("cos", cos), ("sin", sin)):
        state[name][0, :count] = rows
    if prompt.signal is not None:
        state["visual_signal"] = prompt.signal[None]
    return state


def added_rows(plan: VlmPlan, prompt: PromptRows, first: int, size: int) -> dict[str, Floats]:
    """What `prefill` adds behind layers, [1, size, C] each by input, for a prompt's rows.

    It is nothing for words.

    Args:
        plan: The manifest.
        prompt: The prompt.
        first: Its row that is the call's first.
        size: Rows of the call.
    """
    added = np.zeros((len(plan.host.levels), size, plan.host.embedding.columns), np.float32)
    if prompt.levels is not None:
        rows = np.asarray(prompt.visual, np.int64) - first
        here = (rows >= 0) & (rows < size)
        added[:, rows[here]] = prompt.levels[:, here]
    return {f"added_{name}": values[None] for name, values in zip(LEVELS, added, strict=False)}


def causal_mask(first: int, rows: int, length: int, groups: Integers | None = None) -> Floats:
    """Additive mask [1, 1, rows, length]: 0 where a row may attend, -1e4 elsewhere.

    Args:
        first: Cache row of the first row.
        rows: Rows of the call.
        length: Rows of the cache.
        groups: The group of each row of the prompt among them, see `PromptRows`.
    """
    columns, lines = np.arange(length)[None], np.arange(first, first + rows)[:, None]
    mask = np.where(columns <= lines, 0.0, -1e4).astype(np.float32)
    if groups is not None:
        count = len(groups)
        together = (groups[:, None] == groups[None]) & (groups >= 0)
        mask[:count, first : first + count][together] = 0.0
    return mask[None, None]


def call_rows(groups: Integers | None, first: int, most: int) -> int:
    """Rows of a call from row `first` of a prompt on, of `most` that it may take.

    No call ends inside a group, whose rows see each other; 0 where one is longer than that.
    """
    end = first + most
    while groups is not None and first < end < len(groups) and _joined(groups, end):
        end -= 1
    return end - first


def _joined(groups: Integers, row: int) -> bool:
    """Whether a row and the one before it belong to one group."""
    return bool(groups[row - 1] == groups[row] >= 0)


def _groups(plan: VlmPlan, visual: NDArray[np.bool_]) -> Integers | None:
    """The group of each row of a first turn, of which some are visual."""
    if plan.host.mask == "causal":
        return None
    if plan.host.mask == "prefix":
        return np.zeros(len(visual), np.int32)
    starts = visual & ~np.concatenate(([False], visual[:-1]))
    return np.where(visual, np.cumsum(starts) - 1, -1).astype(np.int32)


def _visual_steps(plan: VlmPlan, slot: Slot) -> tuple[Integers, int, int]:
    """Where visual tokens lie from the beginning of their item, [k, axes].

    With it go the item's span, and how far all its places reach, whatever tokens are kept.
    """
    places, item = slot.visual.positions[slot.selected], slot.item
    if plan.host.positions == "contiguous":
        return text_positions(plan, 0, len(places)), len(places), len(places)
    count, places = item.stop - item.start, places - item.start
    if item.places:
        steps = _in_time(plan, slot, _places(item))
        return steps[places], item.span, int(steps.max()) + 1
    return _on_all_axes(places, plan), count, count


def _in_time(plan: VlmPlan, slot: Slot, steps: Integers) -> Integers:
    """Steps [n, axes] whose first axis goes as far as a clip is long."""
    if slot.item.per_second:
        image = plan.host.image
        seconds = min(image.depth * slot.visual.duration / image.frames, FURTHEST)
        # In float32, as the originals.
        rate = np.float32(slot.item.per_second * np.float32(seconds))
        steps[:, 0] = np.minimum(steps[:, 0].astype(np.float32) * rate, FURTHEST)
    return steps


def _word_steps(
    plan: VlmPlan, ids: list[int], before: list[int] | Slot | None
) -> tuple[Integers, int]:
    """The same of words; `before` is the part in front of them, or None."""
    if isinstance(ids, Marker):
        return _places(ids.item), ids.item.span
    steps = text_positions(plan, 0, len(ids))
    if not isinstance(before, Marker):
        return steps, len(ids)
    joined = sum(1 for _ in takewhile(before.item.joins.__contains__, ids))
    steps -= joined
    steps[:joined] = -before.item.span
    return steps, len(ids) - joined


def _places(item: LayoutItem) -> Integers:
    """All places of an item's tokens, [n, axes]."""
    places = np.meshgrid(*(np.asarray(axis, np.int32) for axis in item.places), indexing="ij")
    return np.stack(places, axis=-1).reshape(-1, len(item.places))


def _on_all_axes(positions: Integers, plan: VlmPlan) -> Integers:
    return np.repeat(positions[:, None], plan.host.rope.axes, axis=1)
