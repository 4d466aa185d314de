"""VisPruner: half of the tokens by attention, half from the rest without its duplicates.

For each view (tile, frame) with its budget k of K:

 1. Important tokens: the k * ratio that the class token attends to most.
 2. The rest, by descending attention, loses at most r tokens in a round until k in all are left:
    each token of even index is compared with all of odd index, and those with the largest cosines
    leave. Survivors of even index, by descending cosine, and then the odd ones are the next list.
    Compared are the encoder's own tokens, before the projector.

Rounds are unrolled, (n - k) / r of them: 64 for 576 tokens to 64. Ranks count compares
(`descending`), so that copies of a token do not make engines differ.

Source: VisPruner (arXiv 2412.01818, second version on), Theia-4869/VisPruner. Limits: the order of
a list decides the comparisons of all later rounds, so a rounding error can grow to another set of
tokens. A round is 21 nodes of the graph; many tiles or a small r have over a hundred rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import joined, positions_at, rows_at, split_views
from edgevlm.graphs.selection import (
    ROUNDING,
    ascending,
    descending,
    keep_all,
    select_tokens,
    unit_rows,
)
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

SOURCE = (
    "VisPruner (arXiv 2412.01818), section 3, Theia-4869/VisPruner@aefa01a"
    " llava/model/llava_arch.py: encode_images"
)
SUMMARY = (
    "keeps tokens that the class token attends to, and of the rest those without duplicates before"
    " the projector"
)
FORMULA = (
    "half top attention; of the rest drop the r most similar by max cos(x_even, x_odd) a round"
)
STATIC = "(N - K) / r rounds, unrolled"
DIFFERS = (
    "same tokens as the original where a tower has a class token and each patch is a token (LLaVA"
    " 1.5 and NeXT); a connector that folds several patches into a token compares their means, and"
    " a tower without a class token is scored by the attention that each token receives. Each view"
    " keeps its part of K (original: K of each view). A list of odd length, where the original"
    " stops with an error, has one even index more; copies of a token tie and the first is removed"
    " first"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Keeps K tokens by attention and by removal of duplicates.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        important_ratio: Fraction of K that is kept by attention, 0 to 1, rounded down in each view.
        r: Most tokens removed in one round.

    Raises:
        ValueError: If the fraction is not between 0 and 1, or r is below 1.
    """

    signals = ("cls_attention", "hidden")

    def __init__(
        self, tokens: int | None = None, *, important_ratio: float = 0.5, r: int = 8
    ) -> None:
        if not 0 <= important_ratio <= 1:
            raise ValueError(
                f"important_ratio is a share of the kept tokens, 0 to 1, got {important_ratio}"
            )
        if r < 1:
            raise ValueError(f"r is the most tokens removed in one round, at least 1, got {r}")
        self.tokens = tokens
        self.important_ratio = important_ratio
        self.r = r

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of views and N.
        """
        kept = kept_tokens("vispruner", self.tokens, shape.tokens)
        grid_budgets("vispruner", split_views(shape)[0], kept)
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        cls_attention: Tensor,
        hidden: Tensor,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Select in each view, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            cls_attention: f32 [1, N], attention of the class token to each token.
            hidden: f32 [1, N, D], the tokens before the projector, which are compared.
            shape: The grids; None is one square grid.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("vispruner", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("vispruner", features)
        check_shape("vispruner", features, shape)
        views, places = split_views(shape)
        budgets, chosen = grid_budgets("vispruner", views, kept), []
        for place, budget in zip(places, budgets, strict=True):
            important, diverse = select(
                rows_at(hidden, place),
                rows_at(cls_attention, place),
                budget,
                int(budget * self.important_ratio),
                self.r,
            )
            both = ascending(torch.cat([important, diverse]))
            chosen.append(positions_at(place, both))
        positions, _ = joined(places, chosen)
        return select_tokens(features, positions)


def select(
    hidden: Tensor, attention: Tensor, kept: int, important: int, r: int
) -> tuple[Tensor, Tensor]:
    """Select in one grid.

    Args:
        hidden: f32 [n, D].
        attention: f32 [n].
        kept: Tokens kept, k.
        important: How many of them by attention.
        r: Most tokens removed in one round.

    Returns:
        Indices i64 [important] by descending attention, and i64 [k - important] in the order that
        the last round leaves.
    """
    order = descending(attention)
    first, rest = order[:important], order[important:]
    diverse = kept - important
    if diverse == 0:
        return first, rest[:0]
    unit = unit_rows(hidden)
    cosine = (unit @ unit.transpose(0, 1)).clamp(max=1.0 - ROUNDING)  # [n, n]
    while rest.shape[0] > diverse:
        even, odd = rest[::2], rest[1::2]
        similarity = cosine.index_select(0, even).index_select(1, odd).amax(1)
        removed = min(r, rest.shape[0] - diverse, even.shape[0])
        rest = torch.cat([even.index_select(0, descending(similarity)[removed:]), odd])
    return first, rest
