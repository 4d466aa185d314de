"""MustDrop, the first stage: after the first encoder layer, windows that are alike become a token.

Windows of w x w patches cover the view, whole ones only. The r windows with the largest mean cosine
between their patches become their mean; all other patches stay.

Source: MustDrop (arXiv 2411.10803), liuting20/MustDrop. Limits: one merging, so what is left is not
less than 1 / w^2 of the patches in whole windows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.compress._primitives import descending, marked_indices, unit_rows
from edgevlm.errors import PlanError

SOURCE = (
    "MustDrop (arXiv 2411.10803), section 3.2, liuting20/MustDrop@909afa5"
    " llava/model/multimodal_encoder/local_merge.py: conditional_pooling, merge_wavg"
)
SUMMARY = "merges windows of patches that are alike after the first layer of the encoder"
FORMULA = "the r windows with the largest mean cos(x, x') become their means"
STATIC = "means of constant windows, ranks by counting compares"
DIFFERS = (
    "same rows as the original at the same number of windows, which is fixed by `patches`"
    " (original: those above a threshold of likeness); at the encoder's end each patch gets the"
    " token that it is part of. The stages inside the language model are not here"
)


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
        if self.patches >= patches:
            raise PlanError(
                f"mustdrop: got patches={self.patches}, expected less than {patches} (those of a"
                " view)"
            )
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
        if not class_token:
            return rows, sizes, place
        return (
            torch.cat([x[:1], rows]),
            torch.cat([size[:1], sizes]),
            torch.cat([torch.zeros(1, dtype=torch.int64), place + 1]),
        )


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
