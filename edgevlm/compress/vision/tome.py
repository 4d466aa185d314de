"""ToMe in the encoder: merge the most similar tokens in each of the first layers.

Between attention and MLP r tokens merge by the cosine of their keys (mean over heads), and a merged
token weighs as much in attention as the patches that it stands for.

Source: ToMe (arXiv 2210.09461), facebookresearch/ToMe. Limits: O(n^2) for each layer.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from edgevlm.compress.shared.budgets import check_fewer_patches
from edgevlm.compress.shared.contract import VisionMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import bipartite_soft_matching

SOURCE = (
    "ToMe (arXiv 2210.09461), section 3, facebookresearch/ToMe@af95e4b tome/merge.py:"
    " bipartite_soft_matching, merge_wavg"
)
SUMMARY = (
    "ToMe: merges the most similar patches in each of the first layers of the encoder, and puts"
    " them back at its end"
)
FORMULA = (
    "mean of the tokens that merge by argmax cos(k_even, k_odd), r best pairs a layer, weighted by"
    " size"
)
STATIC = "a matching and one product [n/2, r] a layer"
DIFFERS = (
    "the encoder's tokens are the original's; at its end each patch gets the token that it is part"
    " of, where the original goes on with fewer. Copies of a token tie and the first merges first,"
    " which the original leaves to rounding"
)
COMPARED = "end to end"


class Method(VisionMethod):
    """Merges the same number of tokens in each of the first layers of the encoder.

    Args:
        patches: Patches that are left at the end.
        by: Layer after whose attention they are left, from 1; None is the last but one.
        r: Instead of both: patches that merge in each layer, at most half of those left.

    Raises:
        ValueError: If neither `patches` nor `r` is there, or both, or one is below 1.
    """

    proportional = True

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
        check_fewer_patches("tome", wanted, patches)
        merged = [(patches - wanted) * min(layer, by) // by for layer in range(1, layers + 1)]
        counts = (patches, *(patches - count for count in merged))
        if any(2 * after < before for before, after in pairwise(counts)):
            raise PlanError(
                f"tome: {patches} patches cannot become {wanted} in {by} layers, half of them merge"
                " in a layer at most; leave more, or take more layers"
            )
        return counts[1:]

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge the `removed` pairs of tokens with the largest cosine of their keys.

        Args:
            x: Tokens f32 [n, D].
            metric: Keys f32 [n, E], mean over heads.
            size: Patches that each token stands for, f32 [n, 1].
            removed: r.
            class_token: Token 0 never merges.

        Returns:
            Tokens f32 [n - r, D], their sizes f32 [n - r, 1], and the output token that each input
            token is part of, i64 [n].
        """
        matching = bipartite_soft_matching(metric, removed, class_token=class_token)
        return *matching.merge(x, size), matching.output_index()
