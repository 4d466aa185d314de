"""MustDrop: windows that are alike merge in the encoder, what no word looks at leaves later.

Site `vision`, after the first layer: windows of w x w patches cover the view, whole ones only. The
r windows with the largest mean cosine between their patches become their mean; all others stay.

Site `decoder`, in stages: a visual token stays if the question's words together give it a large
share of what they give to the picture, or if a single one attends to it much. Both thresholds of
the original are equal, so tokens stay in the order of the larger of the two.

Source: MustDrop (arXiv 2411.10803), liuting20/MustDrop. Limits: one merging in the encoder, so what
is left is not less than 1 / w^2 of the patches in whole windows; the prompt is one call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.compress.fastv import best
from edgevlm.compress.shared.stages import check_fewer, numbers, stages
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import after_first, descending, marked_indices, unit_rows

SOURCE = (
    "MustDrop (arXiv 2411.10803), sections 3.2 and 3.3, liuting20/MustDrop@909afa5"
    " llava/model/multimodal_encoder/local_merge.py: conditional_pooling, merge_wavg"
)
SUMMARY = "merges windows that are alike in the encoder; drops what no word looks at in the decoder"
FORMULA = (
    "vision: the r windows with the largest mean cos(x, x') become their means; decoder: top-k of"
    " max(sum of a / sum over the picture, largest a), a the attention of the question's words"
)
STATIC = "means of constant windows, ranks by counting compares; a top-k a stage"
DIFFERS = (
    "same rows as the original at the same number of windows, which is fixed by `patches`"
    " (original: those above a threshold of likeness); at the encoder's end each patch gets the"
    " token that it is part of. At site decoder, from the paper: numbers are fixed (original:"
    " thresholds), tokens of large class attention are not protected, and caches of earlier layers"
    " keep what left later"
)
LAYERS = (2, 6, 10, 14)  # of 32: those in which tokens leave


class EncoderMethod:
    """Merges windows after the first layer of the encoder.

    Args:
        patches: Patches that are left at most; windows are whole, so they can be a few less.
        window: Side of a window in patches: w.

    Raises:
        ValueError: If `patches` is below 1 or `window` below 2.
    """

    between = False

    def __init__(self, *, patches: int, window: int = 3) -> None:
        if patches < 1:
            raise ValueError(f"patches must be at least 1, got {patches}")
        if window < 2:
            raise ValueError(f"window is the side of a window in patches, at least 2, got {window}")
        self.patches, self.window = patches, window

    def plan(self, patches: int, layers: int) -> tuple[int, ...]:
        """Patches left after each layer.

        Args:
            patches: Patches of a view: N, a square grid.
            layers: Layers of the encoder.

        Raises:
            PlanError: If the windows are too few, or the grid is no square.
        """
        side, saved = math.isqrt(patches), self.window**2 - 1
        if side * side != patches:
            raise PlanError(f"mustdrop: got {patches} patches, expected a square grid")
        check_fewer("mustdrop", self.patches, patches)
        merged = -(-(patches - self.patches) // saved)
        if merged > (side // self.window) ** 2:
            least = patches - saved * (side // self.window) ** 2
            raise PlanError(
                f"mustdrop: windows of {self.window}x{self.window} leave {least} of {patches}"
                f" patches or more, got patches={self.patches}; leave more, or take larger windows"
            )
        return (patches - merged * saved,) * layers

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge.

        Args:
            x: Tokens f32 [n, D] of a square grid, after a class token if there is one.
            metric: Not needed.
            size: Patches that each token stands for, all 1.
            removed: Tokens that merge, w^2 - 1 for each window.
            class_token: Token 0 stands for the whole view.

        Returns:
            Tokens f32 [n - removed, D] (class token, windows by descending score, other patches),
            their sizes f32 [n - removed, 1], and the row of each input i64 [n].
        """
        merged = removed // (self.window**2 - 1)
        rows, sizes, place = merge_windows(x[int(class_token) :], self.window, merged)
        return after_first(x, size, rows, sizes, place) if class_token else (rows, sizes, place)


class DecoderMethod:
    """Keeps the visual tokens that the question's words look at, in stages.

    Args:
        tokens: Tokens left in each stage, with `+` between them; None halves what is left in each.
        layers: Layers, counted from 0, that see fewer; None is where the original has them.
    """

    after, contiguous = True, True

    def __init__(self, *, tokens: int | str | None = None, layers: int | str | None = None) -> None:
        self.tokens = None if tokens is None else numbers("mustdrop", "tokens", tokens)
        self.layers = None if layers is None else numbers("mustdrop", "layers", layers)

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before.
        """
        at = self.layers or tuple(sorted({max(1, layers * layer // 32) for layer in LAYERS}))
        left = self.tokens or tuple(max(1, tokens >> stage) for stage in range(1, len(at) + 1))
        return stages("mustdrop", tokens, layers, at, left)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose; as `fastv.DecoderMethod`."""
        weights = look.attention(look.rows).mean(0)  # [s, s]
        return None, best(looked_at(weights.index_select(1, look.visual), look.words), kept)


def looked_at(weights: Tensor, words: Tensor) -> Tensor:
    """How much the question's words look at each visual token: f32 [k].

    Args:
        weights: Attention of all rows to the visual tokens, f32 [s, k].
        words: Rows that are words of the question, bool [s].
    """
    given = weights * words.unsqueeze(1)
    together = given.sum(0)
    return torch.maximum(together / together.sum(), given.amax(0))


def merge_windows(x: Tensor, window: int, merged: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the `merged` windows that are most alike of patches [n, D] of a square grid.

    Returns:
        Rows f32 [k, D], windows by descending score and then patches in raster order, their sizes
        f32 [k, 1], and the row of each patch i64 [n].
    """
    total = x.shape[0]
    side = math.isqrt(total)
    across = side // window
    number = [
        row // window * across + column // window
        if row // window < across and column // window < across
        else -1
        for row in range(side)
        for column in range(side)
    ]
    members = [[p for p, w in enumerate(number) if w == i] for i in range(across * across)]
    inside, whose = torch.tensor(members), torch.tensor(number)
    patches = x.index_select(0, inside.flatten()).reshape(*inside.shape, -1)  # [W, w*w, D]
    unit = unit_rows(patches)
    score = (unit @ unit.transpose(1, 2)).mean((1, 2))
    best = descending(score)[:merged]
    hit = whose.unsqueeze(1) == best  # [n, r]
    gone = hit.sum(1) > 0
    left = marked_indices(~gone, total - merged * window * window)
    first = (hit * torch.arange(merged)).sum(1)
    place = torch.where(gone, first, merged - 1 + (~gone).to(torch.int64).cumsum(0))
    rows = torch.cat([patches.mean(1).index_select(0, best), x.index_select(0, left)])
    heavy = torch.full((merged, 1), float(window * window))
    return rows, torch.cat([heavy, torch.ones(left.shape[0], 1)]), place
