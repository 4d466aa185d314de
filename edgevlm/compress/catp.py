"""CATP: first the tokens that stand for all others, later those that the question turns to.

Site `tokens`, the first stage: in each grid (picture, tile, frame) with its share k of K, greedily
add the token y that raises sum over x of max over the chosen y of s(x, y) most (facility location);
s is the cosine of features, moved to 0 to 1.

Site `decoder`, the second stage: after layer j those tokens stay to which the prompt's last token
attends more than it did in layer j - 1, and which are alike the question's words.

Source: CATP (AAAI 2026), section 3. Limits: k steps one after the other, each O(n^2): for pictures
of a few hundred tokens; unrolled, six nodes a step. Layers j - 1 and j are always in one block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.fastv import best
from edgevlm.compress.shared.stages import stages
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import (
    ROUNDING,
    VisualShape,
    check_shape,
    grid_budgets,
    keep_all,
    keep_rows,
    kept_tokens,
    marked_indices,
    square_shape,
    unit_rows,
)

SOURCE = "CATP (Contextually Adaptive Token Pruning, AAAI 2026), section 3"
SUMMARY = "keeps the tokens that are nearest to all others; later those the question turns to"
FORMULA = (
    "tokens: add argmax_y sum_x max(0, s(x, y) - max over kept of s(x, y')), K times; decoder:"
    " top-k of max(0, a_j - a_(j-1)) + 0.6 cos(h, mean h of the question)"
)
STATIC = "K steps over [n, n], unrolled; two rows of attention and a top-k"
DIFFERS = (
    "from the paper alone, its code is not public: the first stage without its second term, the"
    " likeness to the words beside the picture, for the question is not known when tokens are"
    " reduced; the second stage ranks the one picture of a prompt as the paper ranks the pictures"
    " of its examples; that the question's own picture is pruned against theirs is left out"
)
LIKENESS = 0.6  # weight of the cosine in the second stage


class Method:
    """Keeps K of N tokens.

    Args:
        tokens: K, number of tokens kept; None keeps all.
    """

    signals: tuple[str, ...] = ()

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between the number of grids and N.
        """
        kept = kept_tokens("catp", self.tokens, shape.tokens)
        grid_budgets("catp", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Select in each grid, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("catp", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("catp", features)
        check_shape("catp", features, shape)
        chosen, start = [], 0
        for grid, budget in zip(shape.grids, grid_budgets("catp", shape, kept), strict=True):
            end = start + grid[0] * grid[1]
            chosen.append(cover(features[0, start:end], budget) + start)
            start = end
        return keep_rows(features, torch.cat(chosen))


class DecoderMethod:
    """Keeps some visual tokens from layer j + 1 on.

    Args:
        tokens: Visual tokens that stay; None is half of them.
        layer: j + 1, counted from 0: the first layer that sees fewer. None is 7 of 32.
    """

    after, contiguous, looks_back = True, False, True

    def __init__(self, *, tokens: int | None = None, layer: int | None = None) -> None:
        self.tokens, self.layer = tokens, layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer or the one two before it is not there, or more should stay than
                there are.
        """
        left = tokens // 2 if self.tokens is None else self.tokens
        layer = max(2, layers * 7 // 32) if self.layer is None else self.layer
        if layer == 1:
            raise PlanError("catp: got layer 1, expected 2 or more: it looks at the two before")
        return stages("catp", tokens, layers, (layer,), (left,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose.

        Args:
            look: The layer and its input, with those of the layer before.
            hidden: The layer's output, f32 [1, s, C].
            kept: k.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        assert look.before is not None, "a block begins with the second of the two layers"
        gained = (look.last_to_visual() - look.before.last_to_visual()).clamp(min=0.0)
        mean = look.words.float().unsqueeze(0) @ hidden[0]  # the sum: a cosine has no length
        visual = unit_rows(hidden[0].index_select(0, look.visual))
        return None, best(gained + LIKENESS * (visual @ unit_rows(mean)[0]), kept)


def cover(features: Tensor, kept: int) -> Tensor:
    """Indices i64 [kept], ascending, of the tokens of features [n, C] that cover the rest best."""
    rows = unit_rows(features)
    cosine = (rows @ rows.transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    alike = (cosine + 1.0) / 2.0  # [n, n]
    number = torch.arange(rows.shape[0])
    covered, chosen = torch.zeros(rows.shape[0]), torch.zeros(rows.shape[0], dtype=torch.bool)
    for _ in range(kept):
        gain = (alike - covered).clamp(min=0.0).sum(1)
        best = torch.where(chosen, -1.0, gain).argmax(0, keepdim=True)
        chosen = chosen | (number == best)
        covered = torch.maximum(covered, alike.index_select(0, best)[0])
    return marked_indices(chosen, kept)
