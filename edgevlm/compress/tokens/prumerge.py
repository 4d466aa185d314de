"""LLaVA-PruMerge: keep the tokens that the class token attends to, and add similar ones to each.

For each grid (tile, frame) with its budget k of K, a the attention of the class token:

 1. The k - 1 tokens with the largest a are kept.
 2. Each gets the sum of a[j] x[j] over its 32 nearest tokens j (cosine of keys, kept or not, itself
    left out).
 3. One token more is the sum of a[j] x[j] over all tokens that are not kept.

All of them are one product Y = W X with W [k, n]. The token of step 3 has the position of the most
attended token that is not kept, so that positions are those of the k most attended tokens.

Source: LLaVA-PruMerge (arXiv 2403.15388), 42Shawn/LLaVA-PruMerge. Limits: of nearly equal cosines
another engine may take another one; the paper's models were tuned with these tokens, the sum of
step 3 is no mean, and without tuning quality is lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import (
    ROUNDING,
    ascending,
    descending,
    keep_all,
    largest,
    marked,
    unit_rows,
)
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = (
    "LLaVA-PruMerge (arXiv 2403.15388), sections 3.2 and 3.3, 42Shawn/LLaVA-PruMerge@097c041"
    " llava/model/multimodal_encoder/clip_encoder.py: token_prune_merge_advanced"
)
SUMMARY = "keeps the tokens that the class token attends to most and adds similar tokens to each"
FORMULA = (
    "top-K of the class token's attention a; each plus the sum of a[j] x[j] over its 32"
    " nearest keys"
)
STATIC = "one product [K, N]"
DIFFERS = (
    "same tokens as the original at the same number of tokens, but that number is fixed and counts"
    " the sum of all pruned tokens, where the original takes the outliers of attention (IQR rule)"
    " and one token more; tokens are in raster order (original: by attention, pruned sum last);"
    " attention and keys are those of the layer that gives the features (original: one layer"
    " later); features are those after the projector, the original merges before it; a tower"
    " without a class token is scored by the attention that each token receives, and a packed grid"
    " of several tiles shares one budget; PruMerge+ (evenly spaced tokens) is not here"
)

NEIGHBOURS = 32
# Below any cosine: a token is not its own neighbour.
NEVER = -2.0


class Method(TokensMethod):
    """Keeps k - 1 tokens for each grid's budget k and merges the rest into them and one more.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    signals = ("flat_cls_attention", "flat_keys")

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of grids and N.
        """
        kept = kept_tokens("prumerge", self.tokens, shape.tokens)
        grid_budgets("prumerge", shape, kept)
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        flat_cls_attention: Tensor,
        flat_keys: Tensor,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Select and merge in each grid.

        Args:
            features: f32 [1, N, C].
            flat_cls_attention: f32 [1, N], attention of the class token to each token, of one head.
            flat_keys: f32 [1, N, D], keys of all heads side by side.
            shape: The grids; None is one square grid.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("prumerge", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("prumerge", features)
        check_shape("prumerge", features, shape)
        tokens, positions, start = [], [], 0
        budgets = grid_budgets("prumerge", shape, kept)
        for (height, width), budget in zip(shape.grids, budgets, strict=True):
            end = start + height * width
            grid = slice(start, end)
            weights, kept_in = merge_weights(
                flat_cls_attention[0, grid], flat_keys[0, grid], budget
            )
            tokens.append(weights @ features[:, grid])
            positions.append(kept_in + start)
            start = end
        return torch.cat(tokens, 1), torch.cat(positions).to(torch.int32).unsqueeze(0)


def merge_weights(attention: Tensor, keys: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """W of one grid, from attention [n] and keys [n, D].

    Returns:
        Weights f32 [k, n] and the positions of the kept tokens i64 [k], ascending. O(k n).
    """
    total = attention.shape[0]
    order = descending(attention)[:kept]
    positions, pruned = ascending(order), order[kept - 1]
    number = torch.arange(total)
    own = positions.unsqueeze(1) == number  # [k, n]
    unit = unit_rows(keys)
    cosine = (unit.index_select(0, positions) @ unit.transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    near = largest(torch.where(own, NEVER, cosine), min(NEIGHBOURS, total))
    merged = (near & ~own) * attention + own
    rest = ~marked(order[: kept - 1], total) * attention  # [n]
    return torch.where((positions == pruned).unsqueeze(1), rest, merged), positions
