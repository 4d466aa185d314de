"""Rows taken out of the cache, so that a stream of any length fits it.

The rows behind them move up. A key is kept as it was turned by its position p; turned back by s,
as `turn_back` does, it is the key of position p - s:

    R(p - s) k = R(-s) R(p) k

which is exact but for rounding, for every rotary table, as each frequency turns by an angle that is
proportional to the position. What a row holds of the rows that it saw when it was written stays.
Keeping the first rows and the last ones: StreamingLLM (arXiv 2309.17453), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.host import Rope
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.runtimes.loops.buffers import Array


def evict(
    plan: VlmPlan, states: Sequence[Array], first: int, stop: int, length: int, shift: int
) -> None:
    """Take the rows [first, stop) out of the cache of `length` rows.

    Args:
        plan: The manifest.
        states: Keys and values of each layer that has its own, as `Arrays.states`.
        first: The first row that goes.
        stop: The first behind it that stays.
        length: Rows of the cache.
        shift: By how much the positions of the rows behind fall.
    """
    turned = set(plan.host.stream.turned) if plan.host.stream else set()
    for layer, keys, values in _own(plan, states):
        for array in (keys, values):
            array[:, :, first : first + length - stop] = array[:, :, stop:length]
        if shift and layer in turned:
            rope = plan.host.ropes[plan.host.layer_ropes[layer]]
            turn_back(keys[:, :, first : first + length - stop], rope, shift)


def turn_back(keys: NDArray[np.float32], rope: Rope, shift: int) -> None:
    """Keys [1, heads, n, D] as those of positions that are lower by `shift`; in place.

    All axes of a position fall by as much. Where the table is of fewer numbers than a head, the
    others stay.
    """
    angles = np.asarray(rope.inverse_frequencies, np.float64) * shift
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    half = len(angles)
    left, right = keys[..., :half].copy(), keys[..., half : 2 * half].copy()
    keys[..., :half] = left * cos + right * sin
    keys[..., half : 2 * half] = right * cos - left * sin


def _own(plan: VlmPlan, states: Sequence[Array]) -> Iterator[tuple[int, Array, Array]]:
    """Each layer with rows of its own, and its keys and values."""
    arrays = iter(states)
    for layer, state in enumerate(plan.host.states.each):
        if state.source is None:
            yield layer, next(arrays), next(arrays)
