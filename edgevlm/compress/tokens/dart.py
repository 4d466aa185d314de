"""DART: keep a few pivots, and for each the tokens that are least similar to it.

 1. Pivots: the tokens with the largest L1 norm of their keys.
 2. In turn, by descending norm, each pivot takes its budget of K: of the tokens that are not yet
    taken those with the smallest cosine to it.

Tokens are kept because they are no duplicates, not because they are important; pivots only give
directions to differ from. Budgets are equal; the first pivots take one more where K does not
divide.

Source: DART (arXiv 2502.11494); maths as in ModelTC/LightCompress. Limits: of nearly equal cosines
another engine may take another one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import (
    ROUNDING,
    descending,
    keep_all,
    largest,
    marked,
    marked_indices,
    select_tokens,
    unit_rows,
)
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "DART (arXiv 2502.11494), section 3.3, as in ModelTC/LightCompress@9701d03"
    " llmc/compression/token_reduction/dart.py: get_retained_image_token"
)
SUMMARY = "keeps a few pivots with large keys and the tokens that are least similar to them"
FORMULA = (
    "pivots with the largest |k|_1; each takes the tokens with the smallest cos(x, pivot) left"
)
STATIC = "one product [pivots, N] and a top-k for each pivot, unrolled"
DIFFERS = (
    "the original works inside the language model, after a few of its layers, with their keys and"
    " normed states, and half of its eight pivots are text tokens; here it is before the language"
    " model, with keys of the encoder and features, and all pivots are visual. Pivots take their"
    " turn by descending norm (original: iteration order of a Python set) and K is met exactly"
    " (original: budgets rounded down). Given the same pivots in the same order, the same tokens"
)

# Below the negative of any cosine: a taken token is not taken again.
NEVER = -4.0


class Method(TokensMethod):
    """Keeps K tokens that differ from a few pivots, the pivots among them.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        pivots: Number of pivots, at most K of them are used; the original has 8.

    Raises:
        ValueError: If `pivots` is below 1.
    """

    signals = ("flat_keys",)

    def __init__(self, tokens: int | None = None, *, pivots: int = 8) -> None:
        if pivots < 1:
            raise ValueError(f"pivots is the number of pivot tokens, at least 1, got {pivots}")
        self.tokens = tokens
        self.pivots = pivots

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("dart", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, flat_keys: Tensor, shape: VisualShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            flat_keys: f32 [1, N, D], keys of all heads side by side.
            shape: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        total = features.shape[1]
        kept = kept_tokens("dart", self.tokens, total)
        if kept == total:
            return keep_all(features)
        count = min(self.pivots, kept)
        pivots = descending(flat_keys[0].abs().sum(1))[:count]
        unit = unit_rows(features[0])
        cosine = unit.index_select(0, pivots) @ unit.transpose(0, 1)  # [P, N]
        each, more = divmod(kept - count, count)
        counts = [each + (i < more) for i in range(count)]
        positions = marked_indices(take_dissimilar(cosine, marked(pivots, total), counts), kept)
        return select_tokens(features, positions)


def take_dissimilar(cosine: Tensor, taken: Tensor, counts: Sequence[int]) -> Tensor:
    """Each pivot in turn takes the tokens that are least similar to it.

    Args:
        cosine: f32 [P, N], of pivots and tokens.
        taken: bool [N], tokens taken before.
        counts: How many tokens each pivot takes.

    Returns:
        bool [N], tokens taken in the end. O(P N).
    """
    dissimilarity = -cosine.clamp(max=1.0 - ROUNDING)
    for pivot, count in enumerate(counts):
        if count:
            taken = taken | largest(torch.where(taken, NEVER, dissimilarity[pivot]), count)
    return taken
