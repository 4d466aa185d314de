"""ToMe before the language model: merge the most similar tokens, until K are left.

Rounds of bipartite soft matching (`graphs/matching.py`) between tokens of even and of odd index
repeat on the tokens that are left, at most half of them in one round. Sizes are carried: a token
that stands for five weighs five in the next mean.

Source: ToMe (arXiv 2210.09461), facebookresearch/ToMe. Limits: O(N^2) for each round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.matching import bipartite_soft_matching
from edgevlm.graphs.selection import in_raster_order, keep_all
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "ToMe (arXiv 2210.09461), section 3, facebookresearch/ToMe@af95e4b tome/merge.py:"
    " bipartite_soft_matching, merge_wavg"
)
SUMMARY = (
    "ToMe's merging, once before the language model (original: in each layer of the encoder):"
    " merges the most similar tokens until K are left"
)
FORMULA = (
    "mean of the tokens that merge by argmax cos(x_even, x_odd), r best pairs a round, weighted by"
    " size"
)
STATIC = "a matching and one product [n/2, r] a round"
DIFFERS = (
    "applied once, before the language model, on features: the encoder is not faster, attention is"
    " not weighted by size, and tokens are in raster order of the destinations. Copies of a token"
    " tie and the first merges first, which the original leaves to rounding"
)
COMPARED = "vectors"


class Method(TokensMethod):
    """Merges N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        r: Most tokens merged in one round; None is half of those left, the fewest rounds. A small r
            merges only the most similar, then compares again; each round costs a matmul [n/2, n/2].

    Raises:
        ValueError: If r is below 1.
    """

    def __init__(self, tokens: int | None = None, *, r: int | None = None) -> None:
        if r is not None and r < 1:
            raise ValueError(f"r is the most tokens merged in one round, at least 1, got {r}")
        self.tokens = tokens
        self.r = r

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("tome", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge round by round.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Size-weighted means f32 [1, K, C], and the position of the token that each is merged
            into i32 [1, K], ascending.
        """
        total = features.shape[1]
        kept = kept_tokens("tome", self.tokens, total)
        if kept == total:
            return keep_all(features)
        x, size = features[0], torch.ones(total, 1)
        positions = torch.arange(total)
        while x.shape[0] > kept:
            surplus = x.shape[0] - kept
            r = surplus if self.r is None else min(self.r, surplus)
            matching = bipartite_soft_matching(x, r)
            left, x, size = in_raster_order(matching.remaining, *matching.merge(x, size))
            positions = positions.index_select(0, left)
        return x.unsqueeze(0), positions.to(torch.int32).unsqueeze(0)
