"""Keep K tokens drawn at random: the baseline that each method must beat.

The draw needs no features. It happens before the graph exists, so the graph holds K constant
indices and one gather. All inputs of one exported model keep the same positions.
"""

from __future__ import annotations

import operator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import gather_tokens, keep_all
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = "baseline: uniform draw without replacement, numpy.random.default_rng(seed)"
SUMMARY = "keeps K tokens drawn at random, the same ones for every image"
FORMULA = "K positions drawn with a seed"
STATIC = "constant positions, one gather"
DIFFERS = (
    "papers draw for every image; here the draw is a constant of the graph, which changes the"
    " spread of a result over images, not its mean over seeds"
)
COMPARED = "baseline"


class Method(TokensMethod):
    """Keeps K tokens drawn uniformly without replacement.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        seed: Seed of the draw, 0 or more.

    Raises:
        ValueError: If the seed is negative.
        TypeError: If the seed is no integer.
    """

    def __init__(self, tokens: int | None = None, *, seed: int = 0) -> None:
        if operator.index(seed) < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.tokens = tokens
        self.seed = seed

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("random", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gather the drawn tokens.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        total = features.shape[1]
        kept = kept_tokens("random", self.tokens, total)
        if kept == total:
            return keep_all(features)
        drawn = draw(total, kept, self.seed)
        return gather_tokens(features, torch.tensor(drawn)), torch.tensor(
            [drawn], dtype=torch.int32
        )


@cache
def draw(total: int, kept: int, seed: int) -> tuple[int, ...]:
    """`kept` distinct numbers below `total`, ascending."""
    drawn = np.random.default_rng(seed).choice(total, kept, replace=False)
    return tuple(sorted(drawn.tolist()))
