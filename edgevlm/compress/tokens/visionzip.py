"""VisionZip: keep the tokens that the class token attends to, and merge the rest into a few.

For each view (tile, frame) with its budget of K:

 1. Dominant tokens: those that the class token attends to most.
 2. Contextual tokens: every s-th of the others, plus the mean of the tokens most similar to it
    (`shared/dominant.py`).

Source: VisionZip (arXiv 2412.04467), dvlab-research/VisionZip. Limits: of nearly equal cosines or
attentions another engine may take another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.dominant import dominant_and_contextual
from edgevlm.compress.shared.tiles import (
    joined,
    positions_at,
    rows_at,
    split_views,
    tokens_at,
)
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import keep_all
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = (
    "VisionZip (arXiv 2412.04467), section 3, dvlab-research/VisionZip@3151f6d"
    " visionzip/clip_encoder.py: CLIPVisionTower_VisionZip.forward"
)
SUMMARY = (
    "keeps the tokens that the class token attends to most and merges the rest into a few, after"
    " the projector (original: before it)"
)
FORMULA = "top-d of the class token's attention; the rest to c strided targets by argmax cos(k, k')"
STATIC = "a top-k and one product [K, N]"
DIFFERS = (
    "keeps and groups the same tokens as the original, but adds up a contextual token after the"
    " projector, where the original's goes through it as a sum; the row of the class token, which"
    " the original keeps as one of K, is replaced by a dominant token; tokens are in raster order,"
    " a contextual token at its target (original: dominant, then contextual); each view keeps its"
    " part of K (original: K of each view); a tower without a class token is scored by the"
    " attention that each token receives"
)
COMPARED = "end to end"

# The paper's budgets are 54 + 10, 108 + 20 and 162 + 30.
CONTEXTUAL, OF = 10, 64


class Method(TokensMethod):
    """Keeps K - `contextual` tokens and merges the others to `contextual`.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        contextual: How many of K are merged tokens, over all views; None is 10 of 64.

    Raises:
        ValueError: If `contextual` is negative.
    """

    signals = ("cls_attention", "keys")

    def __init__(self, tokens: int | None = None, *, contextual: int | None = None) -> None:
        if contextual is not None and contextual < 0:
            raise ValueError(
                f"contextual is the number of merged tokens, 0 or more, got {contextual}"
            )
        self.tokens = tokens
        self.contextual = contextual

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of views and N, or below `contextual`.
        """
        kept = kept_tokens("visionzip", self.tokens, shape.tokens)
        self._budgets(split_views(shape)[0], kept)
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        cls_attention: Tensor,
        keys: Tensor,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Select and merge in each view.

        Args:
            features: f32 [1, N, C].
            cls_attention: f32 [1, N], attention of the class token to each token.
            keys: f32 [1, N, D], mean over heads.
            shape: The grids; None is one square grid.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending; a merged token has the
            position of its target.
        """
        kept = kept_tokens("visionzip", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("visionzip", features)
        check_shape("visionzip", features, shape)
        views, places = split_views(shape)
        tokens, positions = [], []
        for place, budget in zip(places, self._budgets(views, kept), strict=True):
            reduced, at = dominant_and_contextual(
                tokens_at(features, place),
                rows_at(cls_attention, place),
                rows_at(keys, place),
                *budget,
            )
            tokens.append(reduced)
            positions.append(positions_at(place, at))
        rows = torch.cat(tokens, 1)
        every, order = joined(places, positions)
        rows = rows if order is None else rows.index_select(1, order)
        return rows, every.to(torch.int32).unsqueeze(0)

    def _budgets(self, shape: VisualShape, kept: int) -> list[tuple[int, int]]:
        """Dominant and contextual tokens of each grid of `shape`."""
        contextual = self.contextual
        if contextual is None:
            contextual = round(kept * CONTEXTUAL / OF)
        if contextual > kept:
            raise PlanError(
                f"visionzip: got contextual={contextual}, expected 0 to {kept} (the tokens kept);"
                " merge fewer tokens or keep more"
            )
        budgets, before = [], 0
        for budget in grid_budgets("visionzip", shape, kept):
            # Rounded running totals: merged tokens add up, and never exceed their grid's budget.
            merged = (before + budget) * contextual // kept - before * contextual // kept
            budgets.append((budget - merged, merged))
            before += budget
        return budgets
