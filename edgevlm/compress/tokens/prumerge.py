"""LLaVA-PruMerge: keep the tokens that the class token attends to, and add similar ones to each.

For each view (thumbnail, tile, frame) with its budget k of K, where a is the attention of the class
token in the last layer of the encoder, as of one head:

 1. The k - 1 tokens with the largest a are kept. PruMerge+ (`plus`) keeps tokens at even steps in
    raster order too, and as many fewer of the others.
 2. Each gets the sum of a[j] x[j] over its 32 nearest tokens j (cosine of keys of that layer, kept
    or not, itself left out).
 3. One token more is the sum of a[j] x[j] over all tokens that are not kept.

All of them are one product Y = W X with W [k, n]. The token of step 3 has the position of the most
attended token that is not kept.

Source: LLaVA-PruMerge (arXiv 2403.15388), 42Shawn/LLaVA-PruMerge. Limits: of nearly equal cosines
another engine may take another one; the paper's models were tuned with these tokens, the sum of
step 3 is no mean, and without tuning quality is lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import (
    joined,
    positions_at,
    rows_at,
    split_views,
    tokens_at,
)
from edgevlm.errors import PlanError
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

COMPARED = "end to end"
SOURCE = (
    "LLaVA-PruMerge (arXiv 2403.15388), sections 3.2 and 3.3, 42Shawn/LLaVA-PruMerge@097c041"
    " llava/model/multimodal_encoder/clip_encoder.py: token_prune_merge_advanced and"
    " token_prune_merge_advanced_plus"
)
SUMMARY = (
    "LLaVA-PruMerge with a fixed number of tokens, after the projector: keeps those that the class"
    " token attends to most and adds similar ones to each"
)
FORMULA = (
    "top-K of the class token's attention a; each plus the sum of a[j] x[j] over its 32"
    " nearest keys"
)
STATIC = "one product [K, N]"
DIFFERS = (
    "the number of tokens is fixed and counts the sum of all pruned ones, where the original takes"
    " the outliers of attention (IQR rule) and one token more, and derives the step of PruMerge+"
    " from how many they are; same kept tokens and weights at the same number; weights are applied"
    " after the projector (original: before it); tokens are in raster order (original: by"
    " attention, pruned sum last); a tower without a class token is scored by the attention that"
    " each token receives"
)

NEIGHBOURS = 32
# Below any cosine: a token is not its own neighbour.
NEVER = -2.0


class Method(TokensMethod):
    """Keeps k - 1 tokens for each view's budget k and merges the rest into them and one more.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        plus: PruMerge+: each token of a view at a multiple of this step is kept; 0 is PruMerge. The
            original's step is a third of N / n, both rounded down, for n outliers.

    Raises:
        ValueError: If `plus` is below 0.
    """

    signals = ("flat_cls_attention", "flat_keys")

    def __init__(self, tokens: int | None = None, *, plus: int = 0) -> None:
        if not isinstance(plus, int) or plus < 0:
            raise ValueError(f"plus must be a step of 1 or more, or 0 for none, got {plus}")
        self.tokens, self.plus = tokens, plus

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of views and N, or a view's budget has no room
                for the tokens at even steps.
        """
        kept = kept_tokens("prumerge", self.tokens, shape.tokens)
        views, _ = split_views(shape)
        budgets = grid_budgets("prumerge", views, kept)
        for (height, width), budget in zip(views.grids, budgets, strict=True):
            steps = len(spaced(height * width, self.plus))
            if steps >= budget and kept < shape.tokens:
                raise PlanError(
                    f"prumerge: plus={self.plus} keeps {steps} tokens of a grid {height}x{width}"
                    f" whose share of tokens={kept} is {budget}, and the sum of the pruned ones;"
                    " take a larger step or keep more tokens"
                )
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        flat_cls_attention: Tensor,
        flat_keys: Tensor,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Select and merge in each view.

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
        views, places = split_views(shape)
        tokens, positions = [], []
        for place, budget in zip(places, grid_budgets("prumerge", views, kept), strict=True):
            attention, keys = rows_at(flat_cls_attention, place), rows_at(flat_keys, place)
            weights, kept_in = merge_weights(attention, keys, budget, self.plus)
            tokens.append(weights @ tokens_at(features, place))
            positions.append(positions_at(place, kept_in))
        rows = torch.cat(tokens, 1)
        every, order = joined(places, positions)
        rows = rows if order is None else rows.index_select(1, order)
        return rows, every.to(torch.int32).unsqueeze(0)


def spaced(total: int, step: int) -> range:
    """Tokens of a view of `total` that PruMerge+ keeps whatever their attention; 0 is none.

    The last token is none of them, as in the original.
    """
    return range(0, total - 1, step) if step else range(0)


def merge_weights(
    attention: Tensor, keys: Tensor, kept: int, plus: int = 0
) -> tuple[Tensor, Tensor]:
    """W of one view, from attention [n] and keys [n, D].

    Args:
        attention: Of the class token: at most 1.
        keys: What is compared.
        kept: k.
        plus: Step of tokens that are kept whatever their attention; 0 for none.

    Returns:
        Weights f32 [k, n] and the positions of the kept tokens i64 [k], ascending. O(k n).
    """
    total, scores = attention.shape[0], attention
    if plus:
        number = torch.arange(total)
        scores = attention + 2.0 * ((number % plus == 0) & (number < total - 1))
    order = descending(scores)[:kept]
    positions, pruned = ascending(order), order[kept - 1]
    number = torch.arange(total)
    own = positions.unsqueeze(1) == number  # [k, n]
    unit = unit_rows(keys)
    cosine = (unit.index_select(0, positions) @ unit.transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    near = largest(torch.where(own, NEVER, cosine), min(NEIGHBOURS, total))
    merged = (near & ~own) * attention + own
    rest = ~marked(order[: kept - 1], total) * attention  # [n]
    return torch.where((positions == pruned).unsqueeze(1), rest, merged), positions
