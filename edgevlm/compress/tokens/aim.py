"""AIM, the merging: halve the tokens of each frame before the language model, until K are left.

In each grid (tile, frame) tokens of even index are matched with those of odd index by the cosine of
features (`graphs/matching.py`). All pairs that can merge do, a token becomes the plain mean of the
tokens that merge into it, and the next round takes the tokens that are left in the order of the
matching. The last round merges no more than is needed.

Source: AIM (arXiv 2412.03248), LaVi-Lab/AIM. Limits: O(n^2) a round and grid; a plain mean of means
gives a lone token as much weight as one that stands for many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.matching import bipartite_soft_matching
from edgevlm.graphs.selection import in_raster_order, keep_all
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = (
    "AIM (arXiv 2412.03248), section 3.2, LaVi-Lab/AIM@edc24e9"
    " llava/model/token_merge.py: bipartite_soft_matching, merge_wavg as called in llava_arch.py"
)
SUMMARY = (
    "AIM's merging before the language model: halves the tokens of each frame by merging similar"
    " neighbours, until K are left"
)
FORMULA = "y = mean of the tokens that merge by argmax cos(x_even, x_odd), halving until K"
STATIC = "a matching and one product a round"
DIFFERS = (
    "same tokens as the original where K is N/2, N/4 or N/8; for other K the last round merges less"
    " than half, which the original cannot. The original merges frames of clips alone, here tiles"
    " and pictures too. Tokens are in raster order of destinations (original: in the order of the"
    " matching)"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Merges N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of grids and N.
        """
        kept = kept_tokens("aim", self.tokens, shape.tokens)
        grid_budgets("aim", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge in each grid.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Means f32 [1, K, C], and the position of the token that each is merged into i32 [1, K],
            ascending.
        """
        kept = kept_tokens("aim", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("aim", features)
        check_shape("aim", features, shape)
        tokens, positions, start = [], [], 0
        budgets = grid_budgets("aim", shape, kept)
        for (height, width), budget in zip(shape.grids, budgets, strict=True):
            end = start + height * width
            merged, at = halve(features[0, start:end], budget)
            at, merged = in_raster_order(at, merged)
            tokens.append(merged)
            positions.append(at + start)
            start = end
        return torch.cat(tokens).unsqueeze(0), torch.cat(positions).to(torch.int32).unsqueeze(0)


def halve(x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Merge tokens [n, C] until `kept` are left.

    Returns:
        Tokens f32 [k, C] and the positions of their destinations i64 [k], in the order of the
        matching.
    """
    positions = torch.arange(x.shape[0])
    while x.shape[0] > kept:
        matching = bipartite_soft_matching(x, x.shape[0] - kept)
        x, _ = matching.merge(x, torch.ones(x.shape[0], 1))
        positions = positions.index_select(0, matching.remaining)
    return x, positions
