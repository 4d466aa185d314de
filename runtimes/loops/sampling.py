"""The choice of the next token from its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes import values

Array = NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; top_p samples from the smallest set with that probability mass."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that no distribution has."""
        values.real("temperature", self.temperature)
        values.real("top_p", self.top_p, most=1.0)
        values.whole("seed", self.seed)


def chooser(sampling: Sampling) -> Callable[[Array], int]:
    """A function from logits f32 [V] to a token id; its draws are determined by the seed.

    Source of top_p: nucleus sampling (arXiv 1904.09751), section 3.1.
    """
    if sampling.temperature <= 0:
        return lambda logits: int(logits.argmax())
    random = np.random.default_rng(sampling.seed)
    temperature, top_p = float(sampling.temperature), float(sampling.top_p)  # fractions too

    def choose(logits: Array) -> int:
        scores = np.asarray(logits, np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature: only the best is left
            odds = np.exp((scores - scores.max()) / temperature)
        odds /= odds.sum()
        if top_p < 1:
            order = np.argsort(-odds, kind="stable")
            mass = np.cumsum(odds[order])
            cutoff = int(np.searchsorted(mass, top_p)) + 1
            keep = np.zeros_like(odds)
            keep[order[:cutoff]] = odds[order[:cutoff]]
            odds = keep / keep.sum()
        return int(random.choice(len(odds), p=odds))

    return choose
