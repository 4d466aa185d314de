"""AIM: halve each frame before the language model, and let tokens leave inside it.

Site `tokens`: in each grid (tile, frame) tokens at even places are matched with those at odd places
(`_matching`) by the cosine of features; all that can merge do, a row becomes the plain mean of the
rows that meet in it, and the next round takes what is left in the order that the matching gives.
The last round merges no more than is needed.

Site `decoder`: from the middle on, visual tokens leave in stages by their importance, a PageRank
over the layer's attention: d starts even over the prompt, five times d becomes d M, where M is the
softmax of the scores at temperature 0.1, and heads are joined as the root of the mean square.

Source: AIM (arXiv 2412.03248), LaVi-Lab/AIM. Limits: O(n^2) a round and grid; a plain mean of means
gives a lone token as much weight as one that stands for many; in the language model the weights of
all rows to all rows, for each stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.fastv import best
from edgevlm.compress.shared.stages import stages
from edgevlm.graphs.matching import bipartite_soft_matching
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import (
    VisualShape,
    check_shape,
    grid_budgets,
    in_raster_order,
    keep_all,
    kept_tokens,
    square_shape,
)

SOURCE = (
    "AIM (arXiv 2412.03248), sections 3.2 and 3.3, LaVi-Lab/AIM@edc24e9"
    " llava/model/token_merge.py: bipartite_soft_matching, merge_wavg as called in llava_arch.py;"
    " .../qwen2/modeling_qwen2.py: get_importance"
)
SUMMARY = "halves the tokens of each frame by merging neighbours that are alike, until K are left"
FORMULA = (
    "tokens: y = mean of rows that meet by argmax cos(x_even, x_odd), halving until K;"
    " decoder: d <- d softmax(QK^T / (0.1 sqrt D)), five times"
)
STATIC = "a matching and one product a round; five products [s] x [s, s] a stage"
DIFFERS = (
    "same rows as the original where K is N/2, N/4 or N/8; for other K the last round merges less"
    " than half, which the original cannot. Rows are in raster order of destinations (original: in"
    " the order of the matching). At site decoder the same importance; tokens leave in four stages"
    " (original: some in each layer from 14 to 21 of 28), with their rows of the caches (original:"
    " they are hidden by a mask)"
)


class Method:
    """Merges N tokens to K.

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
        kept = kept_tokens("aim", self.tokens, shape.tokens)
        grid_budgets("aim", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge in each grid.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Not needed.

        Returns:
            Means f32 [1, K, C], and the position of the token that each is merged into i32 [1, K],
            ascending.
        """
        kept = kept_tokens("aim", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("aim", features)
        check_shape("aim", features, shape)
        tokens, positions, start = [], [], 0
        budgets = grid_budgets("aim", shape, kept)
        for (height, width), budget in zip(shape.grids, budgets, strict=True):
            end = start + height * width
            rows, places = halve(features[0, start:end], budget)
            places, rows = in_raster_order(places, rows)
            tokens.append(rows)
            positions.append(places + start)
            start = end
        return torch.cat(tokens).unsqueeze(0), torch.cat(positions).to(torch.int32).unsqueeze(0)


def halve(x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Merge tokens [n, C] until `kept` are left.

    Returns:
        Rows f32 [k, C] and the places of their destinations i64 [k], in the matching's order.
    """
    places = torch.arange(x.shape[0])
    while x.shape[0] > kept:
        matching = bipartite_soft_matching(x, x.shape[0] - kept)
        x, _ = matching.merge(x, torch.ones(x.shape[0], 1))
        places = places.index_select(0, matching.remaining)
    return x, places


# Layers (of 28) from which on a share of the visual tokens is left.
STAGES = ((14, 0.75), (16, 0.5), (18, 0.25), (21, 0.0))
TEMPERATURE, STEPS = 0.1, 5


class DecoderMethod:
    """Lets all visual tokens leave between the middle and three quarters of the layers."""

    after, contiguous = True, False

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees."""
        found = {max(1, layers * layer // 28): int(tokens * share) for layer, share in STAGES}
        return stages("aim", tokens, layers, tuple(found), tuple(found.values()))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose; as `fastv.DecoderMethod`."""
        real = (look.rows <= look.last).float()
        found = importance(look.scores(look.rows), real)
        return None, best(found.index_select(0, look.visual), kept)


def importance(scores: Tensor, real: Tensor) -> Tensor:
    """PageRank of rows.

    Args:
        scores: Attention before its softmax, f32 [heads, s, s], -1e4 where a row may not look.
        real: 1 for the prompt's rows, 0 for what fills it up, f32 [s].

    Returns:
        f32 [s].
    """
    weights = (scores / TEMPERATURE).softmax(-1)
    rank = (real / real.sum()).expand(scores.shape[0], 1, -1)
    for _ in range(STEPS):
        rank = rank @ weights
    return rank[:, 0].square().mean(0).sqrt()
