"""A vlm's blocks in the order in which a prompt runs them: vision, reduce, decoder, head.

The chain of hidden states is the engine's own. PyTorch repeats every call on the same inputs, with
a cache of its own; where the engine's cache is rounded, or its weights are, with a copy of the
engine's. A block makes all its calls while it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.kinds.shared.decoder import cache_kinds
from edgevlm.bundle.kinds.vlm import writers
from edgevlm.graphs.merging import merges
from edgevlm.parity.calls import BlockCalls, OpenBlock
from edgevlm.parity.compare import Array
from edgevlm.parity.rounding import by_patch, float16_psnr_db, hangs_on_rounding
from edgevlm.parity.vlm_calls import DecoderCall, behind, decoder_calls
from edgevlm.runtimes.loops.sequence import PromptRows, assemble
from edgevlm.runtimes.loops.spelling import Visual
from edgevlm.runtimes.loops.tables import load_tables, load_tokenizer

# Arrays of the states of layers that others read: the engine's, and PyTorch's.
LayerArrays = dict[int, tuple[list[Array], ...]]
QUESTION = "What is in this picture?"
# Views whose encoder calls are compared with PyTorch; all views go through the engine.
COMPARED_VIEWS = 2


@dataclass(frozen=True)
class Reduced:
    """Outputs of the engine's `reduce` by name, in its order.

    `hangs_on_rounding` tells whether PyTorch might choose otherwise too; it takes several calls.
    """

    outputs: Mapping[str, Array]
    hangs_on_rounding: Callable[[], bool]

    @property
    def visual(self) -> Array:
        """Visual tokens [1, K, C]."""
        return self.outputs["visual_tokens"]

    @property
    def kept(self) -> Array:
        """Their positions [1, K]."""
        return self.outputs["kept_positions"]


class VlmBlocks:
    """The engine's side of a vlm, compared call by call."""

    def __init__(self, calls: BlockCalls) -> None:
        self.calls, self.plan = calls, calls.plan
        self.tokenizer = load_tokenizer(calls.bundle, calls.plan.host.vocabulary)
        self.table = load_tables(calls.bundle)

    def prompt_rows(self, visual: Array, kept: Array, *further: Array) -> PromptRows:
        """The prompt's rows for one image or clip, from outputs of `reduce` without batch axis."""
        plan = self.plan
        times = tuple(float(i) for i in range(plan.host.image.frames))
        names = [t.name for t in plan.stage("reduce")[0].functions[0].outputs]
        outputs = zip(names, (visual, kept, *further), strict=False)  # the rows alone do without
        reduced = {name: array[None] for name, array in outputs}
        image = Visual.of(reduced, times, float(len(times)))
        return assemble(
            plan,
            plan.host.layout.prompt,
            self.table,
            self.tokenizer,
            QUESTION,
            [image],
            plan.host.first_position,
        )

    def reduce(self, pixels: Array) -> Reduced:
        """Visual tokens of all views [P, 3, h, w]."""
        values = self._encode(pixels)
        whole, *further = self.plan.stage("reduce")
        for block in further:  # a stream takes a view, beside the one before
            views = self.plan.host.image.views
            split = {name: np.split(array, views, axis=1) for name, array in values.items()}
            second = {name: parts[1] for name, parts in split.items()}
            self._choose(block, second | {"previous": split["features"][0]})
        return self._choose(whole, values)

    def _choose(self, block: Block, values: Mapping[str, Array]) -> Reduced:
        """The tokens that a block of `reduce` keeps."""
        (function,) = block.functions
        with self.calls.open(block) as opened:
            actual, expected = opened.run(function, values), opened.expected(function, values)
            inputs = [values[tensor.name] for tensor in function.inputs]
            chosen = actual["kept_positions"], expected["kept_positions"]
            hangs = partial(hangs_on_rounding, opened.module, inputs, *chosen)
            if np.array_equal(*chosen) or not hangs():
                opened.compare(function, actual, expected)
            else:
                both = np.intersect1d(*chosen)
                opened.compare(function, _only(both, actual), _only(both, expected))
        return Reduced(actual, hangs)

    def logits(self, reduced: Reduced, tokens: tuple[int, ...]) -> Array:
        """Logits [steps, V] of the engine, fed with these tokens."""
        prompt = self.prompt_rows(*(array[0] for array in reduced.outputs.values()))
        calls = decoder_calls(self.plan, prompt, np.array(self.table[list(tokens[:-1])]))
        blocks, writing = self.plan.stage("decoder"), writers(self.plan)
        read: LayerArrays = {}
        for block in writing:
            self._decode(block, calls, read)
        calls = behind(calls) if len(writing) < len(blocks) else calls
        for block in blocks[len(writing) :]:
            self._decode(block, calls, read)
        block = blocks[-1]
        (hidden,) = block.function("decode").links.values()
        checked = [call.values[hidden] for call in calls if call.function == "check"]
        rows = [c.values[hidden][:, [c.head_row]] for c in calls if c.head_row is not None]
        return self._head(rows, checked)

    def _encode(self, pixels: Array) -> dict[str, Array]:
        """What the encoder gives of all views, by name: features and signals."""
        blocks = self.plan.stage("vision")
        (pixel_values,) = blocks[0].functions[0].inputs
        views = [{pixel_values.name: view[None]} for view in pixels]
        outputs: dict[str, list[Array]] = {}
        for block in blocks:
            (function,) = block.functions
            onward = function.links
            with self.calls.open(block) as opened:
                for index, view in enumerate(views):
                    actual = opened.run(function, view)
                    if index < COMPARED_VIEWS:
                        self._compare_view(opened, block, view, actual)
                    for name, array in actual.items():
                        if name in onward:
                            view[onward[name]] = array
                        else:
                            outputs.setdefault(name, []).append(array)
        return {name: np.concatenate(arrays, axis=1) for name, arrays in outputs.items()}

    def _compare_view(
        self, opened: OpenBlock, block: Block, view: Mapping[str, Array], actual: dict[str, Array]
    ) -> None:
        """One call of an encoder block; by patch where it is rounded and tokens merge."""
        (function,) = block.functions
        names, expected = function.links, opened.expected(function, view)
        actual = {names.get(name, name): array for name, array in actual.items()}
        expected = {names.get(name, name): array for name, array in expected.items()}
        if self.calls.thresholds["vision"].exact:
            opened.compare(function, actual, expected)
            return
        opened.compare(function, *by_patch(actual, expected))
        if any(map(merges, self.calls.parts.encoder.modules[slice(*block.span)])):
            inputs = [view[tensor.name] for tensor in function.inputs]
            self.calls.note_float16(block, float16_psnr_db(opened.module, inputs, expected))

    def _decode(self, block: Block, calls: list[DecoderCall], read: LayerArrays) -> None:
        """All calls of one block; what it gives on goes into the calls of the next.

        `read` has the arrays of layers that others read, the engine's and PyTorch's, after all
        calls: masks hide the rows that come later.
        """
        caches, own = self._arrays(block, read)
        pairs = [(c.input, c.output) for c in block.functions[0].caches if c.output]
        written = {present: caches[past] for past, present in pairs}
        exact = self.calls.thresholds["decoder"].exact and self.plan.host.states.exact
        kinds = cache_kinds(self.plan.host, block)
        with self.calls.open(block) as opened:
            for call in calls:
                function = block.function(call.function)
                if not exact:
                    own = {past: array.copy() for past, array in caches.items()}
                values = call.of(self.plan, block.span)
                outputs = opened.run(function, values, caches | written)
                expected = opened.expected(function, values | own)
                own |= {past: expected[present] for past, present in pairs}
                sides = outputs | written, expected
                opened.compare(function, *(_real(call, side, kinds) for side in sides))
                call.values |= {to: outputs[name] for name, to in function.links.items()}
        for layer, inputs in self._inputs(block).items():
            if layer in self.plan.host.states.read_by_others:
                sides = caches, own
                read[layer] = tuple([side[name] for name in inputs] for side in sides)

    def _inputs(self, block: Block) -> dict[int, list[str]]:
        """The inputs of each layer's caches."""
        cached, states = block.functions[0].cached(), self.plan.host.states
        return {
            layer: [cache.input for cache, _ in islice(cached, len(states.of(layer).shapes))]
            for layer in range(*block.span)
        }

    def _arrays(self, block: Block, read: LayerArrays) -> tuple[dict[str, Array], dict[str, Array]]:
        """Caches of a block before its first call by input, the engine's and PyTorch's."""
        states = self.plan.host.states
        caches, own = dict[str, Array](), dict[str, Array]()
        for layer, inputs in self._inputs(block).items():
            state = states.of(layer)
            for side, arrays in enumerate((caches, own)):
                if state.source is None:
                    found = [np.zeros(shape, np.float32) for shape in state.shapes]
                else:
                    found = read[state.source][side]
                arrays |= zip(inputs, found, strict=True)
        return caches, own

    def _head(self, rows: list[Array], checked: list[Array]) -> Array:
        """Logits [steps, V] of rows [1, 1, C]; those of `check` are compared only."""
        logits = []
        for block in self.plan.stage("head"):
            with self.calls.open(block) as opened:
                part = [_project(opened, block.function("logits"), row) for row in rows]
                for hidden in checked:
                    _project(opened, block.function("check"), hidden)
            logits.append(np.concatenate(part))
        return np.concatenate(logits, axis=1)


def _project(opened: OpenBlock, function: Function, hidden: Array) -> Array:
    """One call of a head block: rows [1, n, C] to logits [n, V]."""
    (rows,), (logits,) = function.inputs, function.outputs
    values = {rows.name: hidden}
    actual = opened.run(function, values)
    opened.compare(function, actual, opened.expected(function, values))
    return actual[logits.name]


def _only(positions: Array, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of `reduce` for these positions alone."""
    kept = np.isin(outputs["kept_positions"][0], positions)
    return {name: array[:, kept] for name, array in outputs.items()}


def _real(
    call: DecoderCall, outputs: Mapping[str, Array], kinds: Mapping[str, str]
) -> dict[str, Array]:
    """Outputs of a call without what fills it up; a recurrent state has nothing of that.

    Args:
        call: The call.
        outputs: Its outputs, by name.
        kinds: The kind of state of those that are caches.
    """
    if call.rows is None:
        return dict(outputs)
    cut: dict[str, Any] = {"rows": np.s_[:, :, : call.cache_rows], "recurrent": np.s_[:]}
    return {
        name: array[cut.get(kinds.get(name, ""), np.s_[:, : call.rows])]
        for name, array in outputs.items()
    }
