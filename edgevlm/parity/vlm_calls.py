"""The calls of a vlm's decoder: the inputs of each, made from the prompt's rows and an answer's.

A prompt goes in chunks, or in one call where visual tokens leave inside the decoder; the rows of an
answer go one by one. Where the decoder has a `check`, it takes the first of those rows too, before
single steps write their cache rows again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.parity.compare import Array
from edgevlm.runtimes.loops.sequence import (
    PromptRows,
    added_rows,
    call_rows,
    causal_mask,
    every_table,
    layer_rows,
    prompt_state,
    rotary_tables,
    row_inputs,
    text_positions,
)


@dataclass
class DecoderCall:
    """One call of each decoder block.

    Attributes:
        function: Which function.
        values: Inputs by name; what a block gives on replaces them for the next.
        rows: Rows that are compared, from the first; what follows fills up the call. None are all.
        cache_rows: Cache rows that are compared. None are all.
        head_row: The row of the last block's hidden whose logits count; None is none.
        tokens: Rows of the call as they enter the decoder; None where no layer reads them.
    """

    function: str
    values: dict[str, Array]
    rows: int | None = None
    cache_rows: int | None = None
    head_row: int | None = None
    tokens: Array | None = None

    def of(self, plan: VlmPlan, span: tuple[int, int]) -> dict[str, Array]:
        """The inputs of a block: those of all, and what its layers get of a second table."""
        rows = {} if self.tokens is None else layer_rows(plan, span, self.tokens)
        return self.values | {name: values[None] for name, values in rows.items()}


def decoder_calls(plan: VlmPlan, prompt: PromptRows, answer: Array) -> list[DecoderCall]:
    """All calls of a decoder block.

    Args:
        plan: The plan.
        prompt: The prompt's rows.
        answer: Rows of the embedding table that follow it [n, C].
    """
    positions = text_positions(plan, prompt.next, len(answer))
    calls = _pruned if plan.host.entering else _chunked
    return list(calls(plan, prompt, answer, positions))


def _chunked(
    plan: VlmPlan, prompt: PromptRows, answer: Array, positions: Array
) -> Iterator[DecoderCall]:
    chunk, check, length = plan.host.chunk, plan.host.check, len(prompt.rows)
    bias = None
    if prompt.bias is not None:
        bias = np.pad(prompt.bias, (0, plan.host.states.tokens - length))
    first = 0
    while first < length:
        span = slice(first, first + call_rows(prompt.groups, first, min(chunk, length - first)))
        rows, groups = prompt.rows[span], None if prompt.groups is None else prompt.groups[span]
        call = _call(plan, "prefill", chunk, first, rows, prompt.positions[span], bias, groups)
        call.values |= added_rows(plan, prompt, first, chunk)
        call.head_row = len(rows) - 1 if span.stop == length else None
        yield call
        first = span.stop
    if check and length + check <= plan.host.states.tokens:
        yield _call(plan, "check", check, length, answer[:check], positions, bias)
    for index in range(len(answer)):
        row = answer[index : index + 1]
        call = _call(plan, "decode", 1, length + index, row, positions[index:], bias)
        call.head_row = 0
        yield call


def behind(calls: Iterable[DecoderCall]) -> list[DecoderCall]:
    """Calls of blocks without `prefill`, of those of the blocks before them.

    Of a prompt they take the last row alone, as `decode`.
    """
    others = (call for call in calls if call.function != "prefill" or call.head_row is not None)
    return [_last_row(call) if call.function == "prefill" else call for call in others]


def _last_row(call: DecoderCall) -> DecoderCall:
    row, values = call.head_row, dict[str, Array]()
    assert row is not None and call.tokens is not None
    for name, array in call.values.items():
        if array.ndim == 3:  # rows [1, S, E]
            values[name] = array[:, [row]]
        else:  # a mask of as many rows, or what is the same for all
            values[name] = array[:, :, [row]] if array.shape[2:3] > (1,) else array
    values["position"] = call.values["position"] + np.int32(row)
    return DecoderCall("decode", values, rows=1, head_row=0, tokens=call.tokens[[row]])


def _call(
    plan: VlmPlan,
    function: str,
    size: int,
    first: int,
    rows: Array,
    positions: Array,
    bias: Array | None,
    groups: Array | None = None,
) -> DecoderCall:
    """A call of `size` rows, of which these are the first and the others nothing."""
    count = len(rows)
    filled = np.zeros((size, rows.shape[1]), np.float32)
    padded = np.zeros((size, positions.shape[1]), np.int32)
    filled[:count], padded[:count] = rows, positions[:count]
    tables = every_table(plan, padded) | row_inputs(plan, filled)
    values = {
        **{name: table[None] for name, table in tables.items()},
        "mask": causal_mask(first, size, plan.host.states.tokens, groups),
        "position": np.asarray([first], np.int32),
        "count": np.asarray([count], np.int32),
    }
    if bias is not None:
        values["bias"] = bias[None, None, None]
    return DecoderCall(function, values, rows=count, cache_rows=first + count, tokens=filled)


def _pruned(
    plan: VlmPlan, prompt: PromptRows, answer: Array, positions: Array
) -> Iterator[DecoderCall]:
    yield DecoderCall("prefill", prompt_state(plan, prompt), head_row=0)
    for index, row in enumerate(answer):
        cos, sin = rotary_tables(plan, positions[index : index + 1])
        values = {
            "hidden": row[None, None],
            "cos": cos[None],
            "sin": sin[None],
            "position": np.asarray([len(prompt.rows) + index], np.int32),
            "pruned": np.ones(1, np.int32),
        }
        yield DecoderCall("decode", values, head_row=0)
