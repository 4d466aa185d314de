"""HoliTom, inside the language model: what goes is folded into what is most like it.

After one layer the visual tokens with the largest weight in the last row of its attention (mean
over heads) stay. Each other, in turn, is averaged with the kept one of the largest cosine:
(a + b) / 2, so a later one weighs more. In a row: 2^-m times itself, and 2^-(later + 1) times each
that came, where m came in all and `later` after it.

Source: HoliTom (arXiv 2505.21334), cokeshao/HoliTom. Limits: the prompt is one call; O(k^2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.fastv import best
from edgevlm.compress.shared.stages import stages
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import ROUNDING, marked, marked_indices, unit_rows

SOURCE = (
    "HoliTom (arXiv 2505.21334), section 3.4, cokeshao/HoliTom@e9b2972"
    " holitom/modeling_qwen2.py: merging inside the language model"
)
SUMMARY = "keeps half of the visual tokens after one layer and folds each other into the most alike"
FORMULA = "top-k of the last row; each other folded into its most similar: a <- (a + b) / 2"
STATIC = "one product with powers of 1/2"
DIFFERS = (
    "same rows as the original, in one product instead of one after the other; the layer is at 18"
    " of 28, as the original has it. The merging over frames is not here"
)


class DecoderMethod:
    """Keeps some visual tokens from a layer on and folds the others into them.

    Args:
        tokens: Visual tokens that stay; None is half of them, the original's rate.
        layer: Layer, counted from 0, that sees fewer; None is 9/14 of them.
    """

    after, contiguous = True, False

    def __init__(self, *, tokens: int | None = None, layer: int | None = None) -> None:
        self.tokens, self.layer = tokens, layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer is not there, or more should stay than there are.
        """
        left = round(tokens * 0.5) if self.tokens is None else self.tokens
        layer = max(1, layers * 9 // 14) if self.layer is None else self.layer
        return stages("holitom", tokens, layers, (layer,), (left,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Keep and fold.

        Args:
            look: The layer and its input.
            hidden: Its output, f32 [1, s, C].
            kept: k.

        Returns:
            Visual tokens f32 [1, k, C], and which they are, i64 [k], ascending.
        """
        chosen = best(look.last_to_visual(), kept)
        return fold(hidden.index_select(1, look.visual), chosen), chosen


def fold(tokens: Tensor, kept: Tensor) -> Tensor:
    """Fold tokens [1, n, C] into those of `kept` i64 [k], ascending: f32 [1, k, C]."""
    total, count = tokens.shape[1], kept.shape[0]
    if count == total:
        return tokens
    others = marked_indices(~marked(kept, total), total - count)
    rows = unit_rows(tokens[0])
    cosine = rows.index_select(0, others) @ rows.index_select(0, kept).transpose(0, 1)
    goes = cosine.clamp(max=1.0 - ROUNDING).argmax(1)  # [n - k]
    members = (goes.unsqueeze(0) == torch.arange(count).unsqueeze(1)).float()  # [k, n - k]
    came = members.sum(1, keepdim=True)
    later = came - members.cumsum(1)
    weights = members * torch.exp2(-(later + 1))
    own = tokens.index_select(1, kept) * torch.exp2(-came)
    return own + weights @ tokens.index_select(1, others)
