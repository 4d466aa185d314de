"""The decoder: which rows of a prompt the cache holds, and how the others are computed.

    rows -> without those in the cache -> in chunks, one by one, or as one whole prompt

The host owns every array, the cache among them, and binds them to the engine once; a token then
costs one run per block, and no allocation of weights or cache.
"""

from __future__ import annotations

import time
from itertools import takewhile

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Block
from edgevlm.bundle.kinds.vlm import writers
from edgevlm.errors import InputError
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.buffers import Array, bind
from edgevlm.runtimes.loops.sequence import (
    PromptRows,
    added_rows,
    call_rows,
    causal_mask,
    every_table,
    layer_rows,
    prompt_state,
    row_inputs,
    text_positions,
)


class DecoderLoop:
    """The blocks of one bundle over host arrays, and the KV cache.

    Attributes:
        length: Rows of the cache that belong to the conversation.
        position: Rotary position of the next row, the same on every axis. It is what the prompt
            states, not the last row's and 1, and means nothing while a prompt is written.
    """

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.bundle, self.blocks, self.plan = bundle, blocks, bundle.plan
        started = time.perf_counter()
        self.arrays = bind(self.plan, blocks)
        blocks.open()
        self.load_ms = (time.perf_counter() - started) * 1e3
        self._marks = np.zeros(self.plan.host.states.tokens, np.int64)  # of the cache's rows
        self._marked = 0  # rows of the cache, from the first, whose marks are known
        self._writers = writers(self.plan)
        self._begin()

    def reset(self) -> None:
        """Forget the conversation; the next one may reuse rows of the cache."""
        self._begin()

    def _begin(self) -> None:
        self.length, self.position = 0, self.plan.host.first_position
        self.pruned, self._plain, self._torn = 0, True, False
        for arrays in self.arrays.steps.values():
            if "bias" in arrays:
                arrays["bias"][:] = 0.0
        if self.plan.host.states.recurrent:
            for array in self.arrays.recurrent:
                array[:] = 0.0

    def forget(self) -> None:
        """Forget the conversation and the rows of the cache."""
        self.reset()
        self._marked = 0

    def uncached(self, prompt: PromptRows) -> PromptRows:
        """The rows of a prompt without a prefix that the cache holds from the conversation before.

        So a system prompt and a repeated image are computed once.

        Raises:
            InputError: If no call takes all of the rows that see each other.
        """
        host, groups = self.plan.host, prompt.groups
        self._calls(self.length, len(prompt.rows), groups, _chunked(prompt))
        if self.length or prompt.bias is not None or host.entering or host.states.recurrent:
            return prompt
        marks = _marks(prompt.rows, prompt.positions)
        most = min(len(marks) - 1, host.states.tokens - host.chunk, self._marked)
        shared = zip(marks[: max(0, most)], self._marks, strict=False)
        count = call_rows(groups, 0, len(list(takewhile(lambda pair: pair[0] == pair[1], shared))))
        if prompt.levels is not None and count <= prompt.visual[-1]:
            count -= count % host.chunk  # the calls up to the last visual row are whole
        left = prompt.after(count)
        try:
            self._calls(count, len(left.rows), left.groups, _chunked(left))
        except InputError:  # from that row on; the whole prompt fits
            return prompt
        if count:
            self.length = count
        return left

    def prefill(self, prompt: PromptRows) -> None:
        """Write rows into the cache: in chunks, and one by one where that is less work."""
        done, count = 0, len(prompt.rows)
        if self.plan.host.entering and prompt.visual:  # one call; later rows are single
            self._prompt(prompt)
            return
        if prompt.bias is not None:
            self._plain = False
            for arrays in self.arrays.steps.values():
                arrays["bias"][..., self.length : self.length + count] = prompt.bias
        calls = self._calls(self.length, count, prompt.groups, _chunked(prompt))
        self.blocks.expect("prefill", sum(name == "prefill" for name, _ in calls))
        for name, rows in calls:
            part = slice(done, done + rows)
            if name == "prefill":
                size = self.plan.host.chunk
                for key, values in added_rows(self.plan, prompt, done, size).items():
                    self.arrays.steps[name][key][:] = values
            groups = None if prompt.groups is None else prompt.groups[part]
            self.run(name, prompt.rows[part], prompt.positions[part], groups=groups)
            self._append(prompt.rows[part], prompt.positions[part])
            done += rows
        if len(self._writers) < len(self.plan.stage("decoder")) and name == "prefill":
            self._behind(prompt.rows[-1:], prompt.positions[-1:], rows - 1)
        self.position = prompt.next

    def _calls(
        self, length: int, count: int, groups: Array | None, chunked: int = 0
    ) -> list[tuple[str, int]]:
        """Calls (function, rows) that write `count` rows behind `length`, the largest first.

        The first `chunked` rows go by `prefill`.

        Raises:
            InputError: If no call takes all of the rows that see each other.
        """
        host, calls, done = self.plan.host, list[tuple[str, int]](), 0
        check = host.check if self.blocks.keeps_all else 0
        # A chunk takes as long as chunk / 20 single tokens, with a budget a fifth of that
        # (docs/benchmarks.md). Except for checks, calls do not depend on the budget: where
        # activations are rounded, another call gives another answer. A check takes nearly as long
        # as two tokens.
        few = host.chunk // (4 if check else 32)
        while done < count:
            room = host.states.tokens - length - done
            rows = call_rows(groups, done, min(host.chunk, count - done))
            grouped = groups is not None and bool((groups[done : done + max(rows, 1)] >= 0).any())
            large = rows > (0 if grouped or done < chunked else few)
            if large and host.chunk <= room and not host.entering:
                calls.append(("prefill", rows))
            elif groups is not None and grouped:
                raise InputError(
                    f"{np.bincount(groups[groups >= 0]).max()} tokens of the prompt see each other,"
                    f" and a call takes {host.chunk} rows, from row {length + done} of the"
                    f" {host.states.tokens} of the context; export with a larger --chunk or"
                    " --context"
                )
            elif rows > 1 and check and check <= room:
                calls.append(("check", min(check, rows)))
            else:
                calls.append(("decode", 1))
            done += calls[-1][1]
        return calls

    def go_back(self, length: int, position: int, known: int | None = None) -> None:
        """Shorten the conversation: its next row is `length`, at `position`.

        Args:
            length: Rows that stay.
            position: Rotary position of the next row.
            known: Rows, from the first, that are as they were computed; None is all that stay.
        """
        self._marked = min(self._marked, length if known is None else known)
        self.length, self.position = length, position

    def check_whole(self) -> None:
        """Refuse to go on where rows went through some recurrent layers and not through others.

        Raises:
            InputError: If a call was interrupted since the conversation began.
        """
        if self._torn and self.plan.host.states.recurrent:
            raise InputError(
                "the last answer was interrupted, and the layers of this model cannot go back to"
                " where it began; start a new conversation"
            )

    def logits(self) -> Array:
        """Logits of the next token, f32 [V]."""
        for block in self.plan.stage("head"):
            self.blocks.run(block.name, "logits")
        return self.arrays.logits

    def _prompt(self, prompt: PromptRows) -> None:
        """Prefill a prompt with an image in one call, where the decoder drops visual tokens."""
        count, most = len(prompt.rows), self.plan.host.chunk
        if count > most:
            raise InputError(
                f"the prompt has {count} tokens, this bundle takes at most {most} with an image;"
                " export with a larger --chunk"
            )
        if len(prompt.visual) != self.plan.host.visual_tokens:
            raise InputError(
                f"the prompt has {len(prompt.visual)} visual tokens, this bundle takes one image or"
                f" clip of {self.plan.host.visual_tokens}"
            )
        arrays = self.arrays.steps["prefill"]
        for name, values in prompt_state(self.plan, prompt).items():
            if name in arrays:  # some graphs have no such input
                arrays[name][:] = values
        self.blocks.expect("prefill", 1)
        self._torn = True
        for block in self.plan.stage("decoder"):
            self.blocks.run(block.name, "prefill")
        self._torn = False
        self.arrays.last[0, 0] = arrays["result"][0, 0]
        self.length, self.position, self.pruned = count, prompt.next, 1

    def step(self, name: str, rows: Array) -> None:
        """Run rows of words that come next, and append them to the conversation."""
        self.run(name, rows, text_positions(self.plan, self.position, len(rows)))
        self.advance(rows)

    def advance(self, rows: Array) -> None:
        """Append rows of words that were just written to the cache to the conversation."""
        self._append(rows, text_positions(self.plan, self.position, len(rows)))
        self.position += len(rows)

    def _append(self, rows: Array, positions: Array) -> None:
        count = len(rows)
        if self._plain and self._marked >= self.length:
            self._marks[self.length : self.length + count] = _marks(rows, positions)
            self._marked = self.length + count
        else:
            self._marked = min(self._marked, self.length)
        self.length += count

    def run(
        self,
        name: str,
        rows: Array,
        positions: Array,
        skipped: range = range(0),
        groups: Array | None = None,
    ) -> None:
        """Run rows through the decoder, except `skipped` blocks; they are written at `length`.

        `prefill` runs them through the blocks that have it, see `_behind`.
        """
        self._fill(name, rows, positions, groups)
        decoder = self.plan.stage("decoder")
        blocks = self._writers if name == "prefill" else decoder
        between, written = self.arrays.between[name], 0  # the block whose input has the rows
        self._torn = True
        for index, block in enumerate(blocks):
            if index in skipped:
                continue
            if between[index] is not between[written]:
                between[index][:] = between[written]
            self._run_block(block, name, rows)
            written = index + 1
        self._torn = False
        if len(blocks) == len(decoder):
            self.arrays.last[0, 0] = self.arrays.steps[name]["result"][0, len(rows) - 1]

    def _behind(self, row: Array, position: Array, at: int) -> None:
        """The last row of a prompt through the blocks that add no rows to a cache.

        To them it is a row like any other: `decode` continues behind those that wrote it.

        Args:
            row: The row.
            position: Its rotary position.
            at: Where it stands in the last call of `prefill`.
        """
        first = len(self._writers)
        self.length -= 1  # it is written already
        self._fill("decode", row, position)
        hidden = self.arrays.steps["prefill"]["result"][:, [at]]
        self.arrays.between["decode"][first][:] = hidden
        for block in self.plan.stage("decoder")[first:]:
            self._run_block(block, "decode", row)
        self.length += 1
        self.arrays.last[0, 0] = self.arrays.steps["decode"]["result"][0, 0]

    def _run_block(self, block: Block, name: str, rows: Array) -> None:
        """Run a function of a block, with what its layers get of a second table."""
        if self.plan.host.per_layer is not None:
            for key, values in layer_rows(self.plan, block.span, rows).items():
                self.arrays.steps[name][key][0, : len(rows)] = values
        self.blocks.run(block.name, name)

    def _fill(self, name: str, rows: Array, positions: Array, groups: Array | None = None) -> None:
        """Write what all blocks take of rows."""
        arrays, count = self.arrays.steps[name], len(rows)
        for inputs in (row_inputs(self.plan, rows), every_table(self.plan, positions)):
            for key, values in inputs.items():
                if key in arrays:  # not where no layer reads it
                    arrays[key][0, :count] = values
        numbers = ("position", self.length), ("pruned", self.pruned), ("count", count)
        for key, number in numbers:
            if key in arrays:
                arrays[key][0] = number
        if "mask" in arrays:
            size = arrays["mask"].shape
            arrays["mask"][:] = causal_mask(self.length, size[2], size[3], groups)


def _chunked(prompt: PromptRows) -> int:
    """Rows that `prefill` has to take: it alone adds the levels of visual rows."""
    return 0 if prompt.levels is None else prompt.visual[-1] + 1


def _marks(rows: Array, positions: Array) -> list[int]:
    """A hash of each row with its position on every axis."""
    return [hash((row.tobytes(), *at)) for row, at in zip(rows, positions.tolist(), strict=True)]
