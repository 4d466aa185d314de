"""The arrays between blocks, allocated once and bound to every function of a bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.functions import Block, Tensor
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.runtimes.engine import Blocks

Array = NDArray[Any]


@dataclass(frozen=True)
class Arrays:
    """Arrays that a loop writes and reads between runs.

    Attributes:
        pixels: One view.
        view: Features and signals of one view, by name.
        all_views: Features and signals of all views: inputs of `reduce`.
        reduced: Outputs of `reduce`.
        stream: Inputs and outputs of `stream`; none where the bundle takes no streams.
        states: Arrays of the decoder's layers, layer by layer.
        recurrent: Those of recurrent layers.
        steps: For each function of the decoder its inputs by name, and `result`.
        between: For each function of the decoder the array of hidden that each block takes.
        last: The hidden state that the head takes, [1, 1, C].
        logits: Its logits [V].
        checked: Logits [k, rows] of all rows of a `check`, for each block of the head.
    """

    pixels: Array
    view: dict[str, Array]
    all_views: dict[str, Array]
    reduced: dict[str, Array]
    stream: dict[str, Array]
    states: list[Array]
    recurrent: list[Array]
    steps: dict[str, dict[str, Array]]
    between: dict[str, list[Array]]
    last: Array
    logits: Array
    checked: list[Array]


def bind(plan: VlmPlan, blocks: Blocks) -> Arrays:
    """Allocate the arrays of a plan and bind them."""
    view, features, _ = chain(plan.stage("vision"), "encode", blocks)
    reduce = plan.stage("reduce")[0].functions[0]
    own = blocks.engine.buffers("reduce-0", "reduce")
    all_views = {tensor.name: _array(tensor, own) for tensor in reduce.inputs}
    reduced = {tensor.name: _array(tensor, own) for tensor in reduce.outputs}
    blocks.bind("reduce-0", "reduce", all_views | reduced)
    stream = dict[str, Array]()
    for block in plan.stage("reduce")[1:]:
        function = block.function("stream")
        stream = {tensor.name: tensor.zeros() for tensor in (*function.inputs, *function.outputs)}
        blocks.bind(block.name, "stream", stream)
    decoder, by_block = plan.stage("decoder"), _caches(plan)
    kept = [(by_block[b.name], c) for b in decoder for c in b.functions[0].caches]
    states = [arrays[cache.input] for arrays, cache in kept if cache.output]
    each = (state for state in plan.host.states.each if state.source is None)
    kinds = [state.kind for state in each for _ in state.shapes]
    steps, between = dict[str, dict[str, Array]](), dict[str, list[Array]]()
    for function in decoder[0].functions:
        having = [b for b in decoder if function.name in (f.name for f in b.functions)]
        fed, results, entering = chain(having, function.name, blocks, by_block)
        steps[function.name] = {**fed, "result": results["hidden"]}
        between[function.name] = [inputs["hidden"] for inputs in entering]
    last = np.zeros((1, 1, plan.host.embedding.columns), np.float32)
    logits = np.zeros(plan.host.vocabulary, np.float32)
    checked = []
    for block in plan.stage("head"):
        start, stop = block.span
        blocks.bind(block.name, "logits", {"hidden": last, "logits": logits[start:stop][None]})
        if plan.host.check:
            checked.append(block.function("check").tensor("logits").zeros())
            result = steps["check"]["result"]
            blocks.bind(block.name, "check", {"hidden": result, "logits": checked[-1]})
    return Arrays(
        view["pixel_values"],
        features,
        all_views,
        reduced,
        stream,
        states,
        [array for array, kind in zip(states, kinds, strict=True) if kind == "recurrent"],
        steps,
        between,
        last,
        logits,
        checked,
    )


def chain(
    stage: Sequence[Block],
    name: str,
    blocks: Blocks,
    caches: Mapping[str, Mapping[str, Array]] = MappingProxyType({}),
) -> tuple[dict[str, Array], dict[str, Array], list[dict[str, Array]]]:
    """Bind a function of all blocks of a stage, each to the outputs of the block before.

    Returns:
        Arrays that the host writes, by input; outputs of the stage (by the input of a further block
        where they are chained); inputs of each block.
    """
    fed, state, results = dict[str, Array](), dict[str, Array](), dict[str, Array]()
    entering: list[dict[str, Array]] = []
    spare: dict[str, Array] = {}  # outputs of the block before last, free for reuse
    for block in stage:
        function, own = block.function(name), blocks.engine.buffers(block.name, name)
        for tensor in function.fed:
            if tensor.name not in state:
                state[tensor.name] = fed[tensor.name] = _array(tensor, own)
        used = {id(array) for array in state.values()}
        outputs = {t.name: _array(t, own, spare.get(t.name), used) for t in function.results}
        inputs = {tensor.name: state[tensor.name] for tensor in function.fed}
        blocks.bind(block.name, name, inputs | outputs | dict(caches.get(block.name, {})))
        links = function.links
        spare = {output: inputs[taken] for output, taken in links.items() if taken in inputs}
        state |= {links[key]: array for key, array in outputs.items() if key in links}
        results |= {links.get(key, key): array for key, array in outputs.items()}
        entering.append(inputs)
    return fed, results, entering


def _caches(plan: VlmPlan) -> dict[str, dict[str, Array]]:
    """The caches of each block's layers by the names of its inputs and outputs.

    A layer without a state of its own has the arrays of its source.
    """
    arrays: dict[str, dict[str, Array]] = {}
    of_layer: list[list[Array]] = []
    for block in plan.stage("decoder"):
        names, cached = arrays.setdefault(block.name, {}), block.functions[0].cached()
        for layer in range(*block.span):
            state = plan.host.states.of(layer)
            pairs = list(islice(cached, len(state.shapes)))
            read = None if state.source is None else of_layer[state.source]
            of_layer.append(read or [tensor.zeros() for _, tensor in pairs])
            for (pair, _), array in zip(pairs, of_layer[layer], strict=True):
                names |= {name: array for name in (pair.input, pair.output) if name}
    return arrays


def _array(
    tensor: Tensor,
    own: Mapping[str, Array],
    spare: Array | None = None,
    used: Collection[int] = (),
) -> Array:
    """The engine's own array, the spare one if it fits and is not in use, or a new one."""
    if tensor.name in own:
        return own[tensor.name]
    array = tensor.zeros()
    if spare is None or id(spare) in used:
        return array
    return spare if (spare.shape, spare.dtype) == (array.shape, array.dtype) else array
