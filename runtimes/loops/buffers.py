"""The arrays between blocks: made once by the host, and bound to every function of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.plan import Block, Function, Plan
from edgevlm.runtimes.engine import Blocks

Array = NDArray[Any]


@dataclass(frozen=True)
class Arrays:
    """What a loop writes and reads between runs.

    Attributes:
        pixels: One view.
        view: Features and signals of one view, by name.
        seen: Features and signals of all views: what `reduce` takes.
        chosen: What `reduce` gives.
        cache: Keys and values of each layer in turn.
        steps: For each function of the decoder its inputs by name, and `result`.
        between: For each function of the decoder the two arrays that hidden rows go to and fro.
        last: The row that the head scores, [1, 1, C].
        logits: Its scores [V].
        checked: Scores [k, rows] of all rows of a `check`, for each block of the head.
    """

    pixels: Array
    view: dict[str, Array]
    seen: dict[str, Array]
    chosen: dict[str, Array]
    cache: list[Array]
    steps: dict[str, dict[str, Array]]
    between: dict[str, tuple[Array, Array]]
    last: Array
    logits: Array
    checked: list[Array]


def bind(plan: Plan, blocks: Blocks) -> Arrays:
    """Make the arrays of a plan and bind them."""
    pixels, view = _vision(plan, blocks)
    reduce = plan.stage("reduce")[0].functions[0]
    seen = {tensor.name: _empty(reduce, tensor.name) for tensor in reduce.inputs}
    chosen = {tensor.name: _empty(reduce, tensor.name) for tensor in reduce.outputs}
    blocks.bind("reduce-0", "reduce", seen | chosen)
    kv = plan.host.kv
    cache = [np.zeros(kv.shape(i // 2), np.float32) for i in range(2 * kv.layers)]
    between: dict[str, tuple[Array, Array]] = {}
    if kv.gone:
        steps = _pruned_decoder(plan, blocks, cache)
    else:
        steps = _decoder(plan, blocks, cache, between)
    last = np.zeros((1, 1, plan.host.embedding.columns), np.float32)
    logits = np.zeros(plan.host.vocabulary, np.float32)
    checked = []
    for block in plan.stage("head"):
        start, stop = block.span
        blocks.bind(block.name, "logits", {"hidden": last, "logits": logits[start:stop][None]})
        if plan.host.check:
            checked.append(_empty(block.function("check"), "logits"))
            result = steps["check"]["result"]
            blocks.bind(block.name, "check", {"hidden": result, "logits": checked[-1]})
    return Arrays(pixels, view, seen, chosen, cache, steps, between, last, logits, checked)


def _vision(plan: Plan, blocks: Blocks) -> tuple[Array, dict[str, Array]]:
    vision = plan.stage("vision")
    pixels = _empty(vision[0].functions[0], "pixel_values")
    between, view = {"pixel_values": pixels}, dict[str, Array]()
    free: dict[str, Array] = {}  # what the block before last wrote, and nobody reads any more
    for block in vision:
        function = block.functions[0]
        needed = {id(array) for array in between.values()}
        made = {
            t.name: _reused(free.get(t.name), needed, function, t.name) for t in function.outputs
        }
        given = {tensor.name: between[tensor.name] for tensor in function.inputs}
        free = {f"{name}_out": array for name, array in given.items() if name != "pixel_values"}
        blocks.bind(block.name, "encode", given | made)
        between |= {name.removesuffix("_out"): array for name, array in made.items()}
        view |= made
    return pixels, view


def _decoder(
    plan: Plan, blocks: Blocks, cache: Sequence[Array], between: dict[str, tuple[Array, Array]]
) -> dict[str, dict[str, Array]]:
    stage, steps = plan.stage("decoder"), dict[str, dict[str, Array]]()
    for function in stage[0].functions:
        shared = {
            t.name: _empty(function, t.name)
            for t in function.inputs
            if not t.name.startswith("past_")
        }
        pair = (shared["hidden"], np.zeros_like(shared["hidden"]))
        for index, block in enumerate(stage):
            arrays = {**shared, "hidden": pair[index % 2], "hidden_out": pair[(index + 1) % 2]}
            blocks.bind(block.name, function.name, arrays | _caches(block, cache))
        between[function.name] = pair
        steps[function.name] = {**shared, "result": pair[len(stage) % 2]}
    return steps


def _pruned_decoder(
    plan: Plan, blocks: Blocks, cache: Sequence[Array]
) -> dict[str, dict[str, Array]]:
    """Rows, tables and indices go from block to block; some blocks leave them as they are."""
    stage, steps = plan.stage("decoder"), dict[str, dict[str, Array]]()
    prompt: dict[str, Array] = {"visual_rows": np.zeros((1, plan.visual_tokens), np.int32)}
    prompt["last"] = np.zeros(1, np.int32)
    step = {name: np.zeros(1, np.int32) for name in ("position", "pruned")}
    for name, further in (("prefill", prompt), ("decode", step)):
        first = stage[0].function(name)
        tables = {key: _empty(first, key) for key in ("hidden", "cos", "sin")}
        given = now = tables | further
        for block in stage:
            function = block.function(name)
            made = {
                t.name: _empty(function, t.name)
                for t in function.outputs
                if not t.name.startswith("present_")
            }
            blocks.bind(block.name, name, now | made | _caches(block, cache))
            now = now | {key.removesuffix("_out"): array for key, array in made.items()}
        steps[name] = {**given, "result": now["hidden"]}
    return steps


def _caches(block: Block, cache: Sequence[Array]) -> dict[str, Array]:
    """The caches of a block's layers by the names of its inputs and outputs."""
    found = {}
    for layer in range(*block.span):
        for offset, part in enumerate(("key", "value")):
            name = f"{part}_{layer - block.span[0]}"
            found[f"past_{name}"] = found[f"present_{name}"] = cache[2 * layer + offset]
    return found


def _empty(function: Function, name: str) -> Array:
    spec = next(t for t in (*function.inputs, *function.outputs) if t.name == name)
    return np.zeros(spec.shape, np.int32 if spec.dtype == "i32" else np.float32)


def _reused(array: Array | None, needed: set[int], function: Function, name: str) -> Array:
    """The array if it is one for this tensor and not needed any more, else a new one."""
    made = _empty(function, name)
    if array is None or id(array) in needed:
        return made
    return array if (array.shape, array.dtype) == (made.shape, made.dtype) else made
