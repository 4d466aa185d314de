"""Of many functions that are alike, some are measured for all.

A model of 34 equal layers takes many minutes to measure whole. Functions are alike if their name,
shapes, operations, bytes of weights and load modes are.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm.bundle.plan import Plan
from edgevlm.runtimes.engine import Key
from edgevlm.runtimes.residency.timings import FunctionTiming

# Of functions that are alike at least so many are measured, and so many bytes of weights: more than
# a processor caches, so that a pass displaces them as one over all functions does.
LEAST, ENOUGH_BYTES = 3, 128_000_000


def samples_of(
    plan: Plan[Any], keys: Sequence[Key], modes: Mapping[str, tuple[str, ...]]
) -> list[tuple[list[Key], list[Key]]]:
    """Groups of functions that are alike, each with those to measure, evenly spread.

    Args:
        plan: The manifest.
        keys: The functions of a pass.
        modes: The load modes of each block, by its name.
    """
    groups: dict[object, list[Key]] = {}
    functions = {(b.name, f.name): (b, f) for b in plan.blocks for f in b.functions}
    for key in keys:
        block, function = functions[key]
        tensors = tuple((t.dtype, t.shape) for t in (*function.inputs, *function.outputs))
        alike = function.name, block.weights_bytes, function.flops, tensors, modes[block.name]
        groups.setdefault(alike, []).append(key)
    return [(keys, _spread(keys, functions[keys[0]][0].weights_bytes)) for keys in groups.values()]


def typical(key: Key, alike: Sequence[FunctionTiming]) -> FunctionTiming:
    """A timing of a function from those of others: the median of each time, the most bytes."""
    times = (
        statistics.median(getattr(timing, name) for timing in alike)
        for name in ("load_ms", "first_ms", "run_ms", "evict_ms")
    )
    return FunctionTiming(*key, alike[0].mode, max(timing.bytes for timing in alike), *times)


def _spread(keys: Sequence[Key], weights_bytes: int) -> list[Key]:
    count = min(len(keys), max(LEAST, -(-ENOUGH_BYTES // max(weights_bytes, 1))))
    return [keys[index * len(keys) // count] for index in range(count)]
