"""ToDRE, stage 1: start at the most attended token, then add the least similar one, and so on.

    first = the token that the class token attends to most, in the thumbnail if there is one
    then    K - 1 times the token with the smallest sum of cosines to the selected tokens

The loop is unrolled. It carries the sum of each token: a step is argmin, gather, add. The diagonal
of the cosines is 2 N, above any sum; a selected token therefore marks itself and no mask is
carried. Of equals the lowest index is taken. All of it is float32.

Source: ToDRE (arXiv 2505.18757, second version), stage 1. Limits: N^2 floats for the cosines, K - 1
steps one after the other, three nodes of the graph each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import thumbnail
from edgevlm.graphs.selection import ROUNDING, ascending, keep_all, select_tokens, unit_rows
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = "ToDRE (arXiv 2505.18757v2), stage 1, diversity-driven selection; from the paper's text"
SUMMARY = (
    "ToDRE's first stage: keeps the most attended token and K - 1 that are least similar to those"
    " kept (max-sum diversity)"
)
FORMULA = "add argmin_y sum over kept of cos(x, y), K times, from the most attended token"
STATIC = "K steps over a row of [N, N], unrolled"
DIFFERS = (
    "stage 1 alone: stage 2 drops all visual tokens inside the language model, at a depth that"
    " depends on the data; a tower without a class token starts at the token"
    " that receives most attention (paper: a random token); compared with the paper's equations on"
    " a model, for there was no code"
)
COMPARED = "paper's equations"


class Method(TokensMethod):
    """Keeps K tokens by greedy max-sum diversity.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    signals = ("cls_attention",)

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("todre", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, cls_attention: Tensor, shape: VisualShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            cls_attention: f32 [1, N], attention of the class token to each token.
            shape: Says where the thumbnail is; without one the first token is the most attended of
                all tiles or frames.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("todre", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        start, end = 0, features.shape[1]
        if shape is not None and shape.global_view:
            start, (height, width) = thumbnail("todre", shape)
            end = start + height * width
        first = cls_attention[:, start:end].argmax(1) + start
        positions = ascending(select(features[0], first, kept))
        return select_tokens(features, positions)


def select(features: Tensor, first: Tensor, kept: int) -> Tensor:
    """Indices i64 [K] of tokens of features [N, C] from `first` i64 [1] on, in selection order.

    O(N^2 C) for the cosines and O(N K) for the loop.
    """
    unit = unit_rows(features)
    total = unit.shape[0]
    cosine = (unit @ unit.transpose(0, 1)).clamp(max=1.0 - ROUNDING)  # [N, N]
    number = torch.arange(total)
    cosine = torch.where(number == number.unsqueeze(1), 2.0 * total, cosine)
    picks = [first]
    sums = cosine.index_select(0, picks[0])  # [1, N]
    for _ in range(kept - 1):
        if len(picks) > 1:
            sums = sums + cosine.index_select(0, picks[-1])
        picks.append(sums.argmin(1))
    return torch.cat(picks)
