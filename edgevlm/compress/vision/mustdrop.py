"""MustDrop in the encoder: windows of similar patches merge after the first layer.

Windows of w x w patches cover the view, whole ones only. The r windows with the largest mean cosine
between their patches become their mean; all other patches stay.

Source: MustDrop (arXiv 2411.10803), liuting20/MustDrop. Limits: windows merge once, so at least
1 / w^2 of the patches in whole windows is left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import check_fewer_patches
from edgevlm.compress.shared.contract import VisionMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import prepend_class_token
from edgevlm.graphs.selection import descending, marked_indices, unit_rows

SOURCE = (
    "MustDrop (arXiv 2411.10803), section 3.2, liuting20/MustDrop@909afa5"
    " llava/model/multimodal_encoder/local_merge.py: conditional_pooling, merge_wavg"
)
SUMMARY = "merges windows of similar patches in the encoder"
FORMULA = "the r windows with the largest mean cos(x, x') become their means"
STATIC = "means of constant windows, ranks by counting compares"
DIFFERS = (
    "same tokens as the original at the same number of windows, which is fixed by `patches`"
    " (original: those above a threshold of similarity); at the encoder's end each patch gets the"
    " token that it is part of"
)


class Method(VisionMethod):
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
        check_fewer_patches("mustdrop", self.patches, patches)
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
            their sizes f32 [n - removed, 1], and the output token that each input token is part of,
            i64 [n].
        """
        windows = removed // (self.window**2 - 1)
        merged = merge_windows(x[int(class_token) :], self.window, windows)
        return prepend_class_token(x, size, *merged) if class_token else merged


def merge_windows(x: Tensor, window: int, merged: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the `merged` windows of the most similar patches [n, D] of a square grid.

    Returns:
        Tokens f32 [k, D], windows by descending score and then patches in raster order, their sizes
        f32 [k, 1], and the token that each patch is part of, i64 [n].
    """
    total = x.shape[0]
    side = math.isqrt(total)
    across = side // window
    window_of = [
        row // window * across + column // window
        if row // window < across and column // window < across
        else -1
        for row in range(side)
        for column in range(side)
    ]
    members = [[p for p, w in enumerate(window_of) if w == i] for i in range(across * across)]
    inside, own_window = torch.tensor(members), torch.tensor(window_of)
    patches = x.index_select(0, inside.flatten()).reshape(*inside.shape, -1)  # [W, w*w, D]
    unit = unit_rows(patches)
    score = (unit @ unit.transpose(1, 2)).mean((1, 2))
    best = descending(score)[:merged]
    in_best = own_window.unsqueeze(1) == best  # [n, r]
    merges = in_best.sum(1) > 0
    left = marked_indices(~merges, total - merged * window * window)
    window_rank = (in_best * torch.arange(merged)).sum(1)
    token_of = torch.where(merges, window_rank, merged - 1 + (~merges).to(torch.int64).cumsum(0))
    tokens = torch.cat([patches.mean(1).index_select(0, best), x.index_select(0, left)])
    window_sizes = torch.full((merged, 1), float(window * window))
    return tokens, torch.cat([window_sizes, torch.ones(left.shape[0], 1)]), token_of
