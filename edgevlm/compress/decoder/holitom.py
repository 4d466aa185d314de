"""HoliTom's inner merging alone: a token that leaves is folded into the most similar one.

After one layer the visual tokens with the largest weight in the last row of its attention (mean
over heads) stay. Each other, in turn, is averaged with the kept one of the largest cosine:
(a + b) / 2, so a later one weighs more. A kept token becomes 2^-m times itself plus 2^-(later + 1)
times each folded token, where m were folded in all and `later` of them after it.

Source: HoliTom (arXiv 2505.21334), cokeshao/HoliTom. Limits: the prompt is one call; O(k^2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import ROUNDING, largest_indices, marked, marked_indices, unit_rows

SOURCE = (
    "HoliTom (arXiv 2505.21334), section 3.4, cokeshao/HoliTom@e9b2972"
    " holitom/modeling_qwen2.py: merging inside the language model"
)
SUMMARY = (
    "the inner merging of HoliTom alone: keeps half of the visual tokens after one layer, folds"
    " each other into the most similar"
)
FORMULA = "top-k of the last row; each other folded into its most similar: a <- (a + b) / 2"
STATIC = "one product with powers of 1/2"
DIFFERS = (
    "HoliTom's main part, the merging over the frames of a clip, is holitom@tokens; this is a small"
    " part of the method. Same tokens as the original inside the language model, in one product"
    " instead of one after the other; the layer is at 18 of 28, as the original has it"
)
COMPARED = "end to end"


class Method(DecoderMethod):
    """Keeps some visual tokens from a layer on and folds the others into them.

    Args:
        tokens: Visual tokens that stay; None is half of them, the original's rate.
        layer: Layer, counted from 0, that sees fewer; None is 9/14 of them.
    """

    def __init__(self, *, tokens: int | None = None, layer: int | None = None) -> None:
        self.tokens, self.layer = tokens, layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer is not there, or more should stay than there are.
        """
        left = round(tokens * 0.5) if self.tokens is None else self.tokens
        layer = max(1, layers * 9 // 14) if self.layer is None else self.layer
        return layer_counts("holitom", tokens, layers, (layer,), (left,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Keep and fold.

        Args:
            look: The layer and its input.
            hidden: Its output, f32 [1, s, C].
            kept: k, visual tokens that stay.

        Returns:
            Visual tokens f32 [1, k, C], and which they are, i64 [k], ascending.
        """
        chosen = largest_indices(look.last_to_visual(), kept)
        return fold(hidden.index_select(1, look.visual), chosen), chosen


def fold(tokens: Tensor, kept: Tensor) -> Tensor:
    """Fold tokens [1, n, C] into those of `kept` i64 [k], ascending: f32 [1, k, C]."""
    total, count = tokens.shape[1], kept.shape[0]
    if count == total:
        return tokens
    others = marked_indices(~marked(kept, total), total - count)
    unit = unit_rows(tokens[0])
    cosine = unit.index_select(0, others) @ unit.index_select(0, kept).transpose(0, 1)
    target = cosine.clamp(max=1.0 - ROUNDING).argmax(1)  # [n - k]
    members = (target.unsqueeze(0) == torch.arange(count).unsqueeze(1)).float()  # [k, n - k]
    folded = members.sum(1, keepdim=True)
    later = folded - members.cumsum(1)
    weights = members * torch.exp2(-(later + 1))
    own = tokens.index_select(1, kept) * torch.exp2(-folded)
    return own + weights @ tokens.index_select(1, others)
