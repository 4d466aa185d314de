"""FasterVLM: keep the K tokens that the class token attends to most.

    score[i] = mean over heads of the attention of the class token to token i
    kept     = the K largest scores, in raster order

Where there are several views (tiles, frames) each keeps its budget of K, in proportion to its
tokens, so that no tile is lost.

Source: FasterVLM (arXiv 2412.01818, first version), Theia-4869/FasterVLM. Limits: of nearly equal
scores top-k may take another one in another engine.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import joined, positions_at, rows_at, split_views
from edgevlm.graphs.selection import ascending, keep_all, select_tokens
from edgevlm.graphs.visual_shape import VisualShape, square_shape

SOURCE = (
    "FasterVLM (arXiv 2412.01818v1), Theia-4869/FasterVLM@f5d5f12"
    " LLaVA/llava/model/llava_arch.py: encode_images"
)
SUMMARY = "keeps the K tokens that the class token attends to most"
FORMULA = "top-K of the class token's attention"
STATIC = "one top-k"
DIFFERS = (
    "same tokens as the original, each view its part of K (original: K of each view); a tower"
    " without a class token is scored by the attention that each token receives"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Keeps K tokens by attention of the class token.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    signals = ("cls_attention",)

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of views and N.
        """
        kept = kept_tokens("fastervlm", self.tokens, shape.tokens)
        grid_budgets("fastervlm", split_views(shape)[0], kept)
        return kept

    def __call__(
        self, features: Tensor, *, cls_attention: Tensor, shape: VisualShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            cls_attention: f32 [1, N], attention of the class token to each token.
            shape: Grids of the features; one square grid if not given.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("fastervlm", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("fastervlm", features)
        views, places = split_views(shape)
        budgets, chosen = grid_budgets("fastervlm", views, kept), []
        for place, budget in zip(places, budgets, strict=True):
            scores = rows_at(cls_attention, place)
            chosen.append(positions_at(place, ascending(scores.topk(budget).indices)))
        positions, _ = joined(places, chosen)
        return select_tokens(features, positions)
