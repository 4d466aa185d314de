"""ToMe: merge the tokens that are most alike, until K are left.

At site `vision`, as the paper has it: in each of the first layers of the encoder, between attention
and MLP, r tokens merge by the cosine of their keys (mean over heads), and a merged token weighs as
much in attention as what it stands for.

At site `tokens`: rounds of bipartite soft matching (`_matching`) between tokens at even and at odd
places repeat on what is left, at most half of it in one round. Sizes are carried: a token that
stands for five weighs five in the next mean.

Source: ToMe (arXiv 2210.09461), facebookresearch/ToMe. Limits: O(N^2) for each round.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from edgevlm.compress.shared.stages import check_fewer
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import bipartite_soft_matching
from edgevlm.graphs.selection import VisualShape, in_raster_order, keep_all, kept_tokens

SOURCE = (
    "ToMe (arXiv 2210.09461), section 3, facebookresearch/ToMe@af95e4b tome/merge.py:"
    " bipartite_soft_matching, merge_wavg"
)
SUMMARY = "merges the most similar tokens until K are left (bipartite soft matching)"
FORMULA = (
    "mean of rows that meet by argmax cos(k_even, k_odd), r best pairs a round, weighted by size"
)
STATIC = "a matching and one product [n/2, r] a round"
DIFFERS = (
    "at site vision the same merging as the original; at the encoder's end each patch gets the"
    " token that it is part of, where the original goes on with fewer. At site tokens it is applied"
    " once, before the language model, on features: the encoder is not faster, attention is not"
    " weighted by size, and rows are in raster order of the destinations. Copies of a token tie and"
    " the first merges first, which the original leaves to rounding"
)


class Method:
    """Merges N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        r: Most tokens merged in one round; None is half of those left, the fewest rounds. A small r
            merges only what is most alike, then looks again; each round costs a matmul [n/2, n/2].

    Raises:
        ValueError: If r is below 1.
    """

    signals: tuple[str, ...] = ()

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
            most = x.shape[0] - kept
            matching = bipartite_soft_matching(x, most if self.r is None else min(self.r, most))
            left, x, size = in_raster_order(matching.remaining, *matching.merge(x, size))
            positions = positions.index_select(0, left)
        return x.unsqueeze(0), positions.to(torch.int32).unsqueeze(0)


class EncoderMethod:
    """Merges the same number of tokens in each of the first layers of the encoder.

    Args:
        patches: Patches that are left at the end.
        by: Layer after whose attention they are left, from 1; None is the last but one.
        r: Instead of both: patches that merge in each layer, at most half of those left.

    Raises:
        ValueError: If neither `patches` nor `r` is there, or both, or one is below 1.
    """

    between = True

    def __init__(
        self, *, patches: int | None = None, by: int | None = None, r: int | None = None
    ) -> None:
        if (patches is None) == (r is None) or (by is not None and patches is None):
            raise ValueError("give patches (and by, the layer where they are left), or r alone")
        for name, value in (("patches", patches), ("by", by), ("r", r)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.patches, self.by, self.r = patches, by, r

    def plan(self, patches: int, layers: int) -> tuple[int, ...]:
        """Patches left after each layer.

        Args:
            patches: Patches of a view: N.
            layers: Layers of the encoder.

        Raises:
            PlanError: If so many cannot merge, half of those left in a layer at most.
        """
        if self.r is not None:
            left = [patches]
            for _ in range(layers):
                left.append(left[-1] - min(self.r, left[-1] // 2))
            return tuple(left[1:])
        by, wanted = self.by or max(1, layers - 1), self.patches
        assert wanted is not None
        if by > layers:
            raise PlanError(f"tome: got by={by}, the encoder has {layers} layers")
        check_fewer("tome", wanted, patches)
        gone = [(patches - wanted) * min(layer, by) // by for layer in range(1, layers + 1)]
        counts = (patches, *(patches - count for count in gone))
        if any(2 * after < before for before, after in pairwise(counts)):
            raise PlanError(
                f"tome: {patches} patches cannot become {wanted} in {by} layers, half of them merge"
                " in a layer at most; leave more, or take more layers"
            )
        return counts[1:]

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge.

        Args:
            x: Tokens f32 [n, D].
            metric: Keys f32 [n, E], mean over heads.
            size: Patches that each token stands for, f32 [n, 1].
            removed: r.
            class_token: Token 0 never merges.

        Returns:
            Tokens f32 [n - r, D], their sizes f32 [n - r, 1], and the row of each input i64 [n].
        """
        matching = bipartite_soft_matching(metric, removed, class_token=class_token)
        return *matching.merge(x, size), matching.rows()
