"""VisionZip: keep what the class token attends to, and merge the rest into a few tokens.

For each grid (tile, frame) with its share of K:

 1. Dominant tokens: those that the class token attends to most.
 2. Targets: every s-th of the others in raster order, s = floor(others / contextual).
 3. Each token that is neither goes to the target whose key has the largest cosine with its own.
 4. A contextual token is its target plus the mean of the tokens that went there, so it is about
    twice as long as a token. The original does this, and models are measured with it.

Merging is Y = X[positions] + W X, where W [k, n] has the share of each token in each row; rows of
dominant tokens are zero.

Source: VisionZip (arXiv 2412.04467), dvlab-research/VisionZip. Limits: of nearly equal cosines or
attentions another engine may take another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import (
    ROUNDING,
    VisualShape,
    ascending,
    check_shape,
    gather_rows,
    grid_budgets,
    keep_all,
    kept_tokens,
    marked,
    marked_indices,
    square_shape,
    unit_rows,
)

SOURCE = (
    "VisionZip (arXiv 2412.04467), section 3, dvlab-research/VisionZip@3151f6d"
    " visionzip/clip_encoder.py: CLIPVisionTower_VisionZip.forward"
)
SUMMARY = "keeps the tokens that the class token attends to most and merges the rest into a few"
FORMULA = "top-d of the class token's attention; the rest to c strided targets by argmax cos(k, k')"
STATIC = "a top-k and one product [K, N]"
DIFFERS = (
    "same tokens as the original, but the row of the class token, which the original keeps as one"
    " of K, is not there and a dominant token has its place; rows are in raster order, a contextual"
    " token at its target (original: dominant, then contextual); features are those after the"
    " projector, the original reduces before it; a tower without a class token is scored by the"
    " attention that each token receives, and a packed grid of several tiles shares one budget"
)

# The paper's budgets are 54 + 10, 108 + 20 and 162 + 30.
CONTEXTUAL, OF = 10, 64


class Method:
    """Keeps K - `contextual` tokens and merges the others to `contextual`.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        contextual: How many of K are merged tokens, over all grids; None is 10 of 64.

    Raises:
        ValueError: If `contextual` is negative.
    """

    signals: tuple[str, ...] = ("cls_attention", "keys")

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
            PlanError: If K is not between the number of grids and N, or below `contextual`.
        """
        kept = kept_tokens("visionzip", self.tokens, shape.tokens)
        self._budgets(shape, kept)
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        cls_attention: Tensor,
        keys: Tensor,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Select and merge in each grid.

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
        tokens, positions, start = [], [], 0
        budgets = self._budgets(shape, kept)
        for (height, width), (dominant, contextual) in zip(shape.grids, budgets, strict=True):
            end = start + height * width
            rows, places = reduce_grid(
                features[:, start:end],
                cls_attention[0, start:end],
                keys[0, start:end],
                dominant,
                contextual,
            )
            tokens.append(rows)
            positions.append(places + start)
            start = end
        return torch.cat(tokens, 1), torch.cat(positions).to(torch.int32).unsqueeze(0)

    def _budgets(self, shape: VisualShape, kept: int) -> list[tuple[int, int]]:
        """Dominant and contextual tokens of each grid."""
        contextual = self.contextual
        if contextual is None:
            contextual = round(kept * CONTEXTUAL / OF)
        if contextual > kept:
            raise PlanError(
                f"visionzip: got contextual={contextual}, expected 0 to {kept} (the tokens kept);"
                " merge fewer tokens or keep more"
            )
        shares, before = [], 0
        for budget in grid_budgets("visionzip", shape, kept):
            # Rounded running totals: the shares add up, and none is above its budget.
            merged = (before + budget) * contextual // kept - before * contextual // kept
            shares.append((budget - merged, merged))
            before += budget
        return shares


def reduce_grid(
    features: Tensor, attention: Tensor, keys: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, Tensor]:
    """One grid: features [1, n, C], attention [n], keys [n, D] to `dominant` + `contextual` rows.

    Returns:
        Rows f32 [1, k, C] and their positions i64 [k], ascending.
    """
    total = features.shape[1]
    others = torch.ones(total, dtype=torch.bool)
    chosen = attention.topk(dominant).indices if dominant else torch.arange(0)
    if not contextual:
        positions = ascending(chosen)
        return gather_rows(features, positions), positions
    if dominant:
        others = ~marked(chosen, total)
    rest = total - dominant
    targets = marked_indices(others, rest)[:: rest // contextual][:contextual]
    positions = ascending(torch.cat([chosen, targets]))
    cosine = unit_rows(keys) @ unit_rows(keys.index_select(0, targets)).transpose(0, 1)
    nearest = cosine.clamp(max=1.0 - ROUNDING).argmax(1)  # [n], place among the targets
    # A token that is a row itself goes nowhere.
    target = torch.where(marked(positions, total), -1, targets.index_select(0, nearest))
    members = (positions.unsqueeze(1) == target).float()  # [k, n]
    weights = members / members.sum(1, keepdim=True).clamp(min=1.0)
    return gather_rows(features, positions) + weights @ features, positions
