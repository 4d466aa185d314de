"""MustDrop in the encoder: windows of similar patches merge after the first layer.

Windows of w x w patches cover the view, whole ones only. The r windows with the largest mean cosine
between their patches become their mean; all other patches stay. Later layers are the encoder's own:
a merged token weighs as much in attention as any other.

Source: MustDrop (arXiv 2411.10803), liuting20/MustDrop. Limits: windows merge once, so at least
1 / w^2 of the patches in whole windows is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import check_fewer_patches
from edgevlm.compress.shared.calibration import Calibrated, Subject
from edgevlm.compress.shared.contract import VisionMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import prepend_class_token
from edgevlm.graphs.selection import descending, marked_indices, unit_rows
from edgevlm.recipe import OptionValue

SOURCE = (
    "MustDrop (arXiv 2411.10803), section 3.2, liuting20/MustDrop@909afa5"
    " llava/model/multimodal_encoder/local_merge.py: conditional_pooling, merge_wavg"
)
SUMMARY = (
    "MustDrop, first stage: merges windows of similar patches after the first layer of the encoder,"
    " and puts them back at its end"
)
FORMULA = "the r windows with the largest mean cos(x, x') become their means"
STATIC = "means of constant windows, ranks by counting compares"
DIFFERS = (
    "equals the original for a picture with as many windows above its threshold as `patches` says;"
    " that number is fixed here (edgevlm calibrate mustdrop gives its mean over pictures). At the"
    " encoder's end each patch gets the token that it is part of, where the original goes on with"
    " fewer; rows and columns that fill no window stay, the original refuses such a grid"
)
COMPARED = "end to end"
THRESHOLD = 0.8  # the original's


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
    patches, own_window = _windows(x, window)
    best = descending(_scores(patches))[:merged]
    in_best = own_window.unsqueeze(1) == best  # [n, r]
    merges = in_best.sum(1) > 0
    left = marked_indices(~merges, total - merged * window * window)
    window_rank = (in_best * torch.arange(merged)).sum(1)
    token_of = torch.where(merges, window_rank, merged - 1 + (~merges).to(torch.int64).cumsum(0))
    tokens = torch.cat([patches.mean(1).index_select(0, best), x.index_select(0, left)])
    window_sizes = torch.full((merged, 1), float(window * window))
    return tokens, torch.cat([window_sizes, torch.ones(left.shape[0], 1)]), token_of


def calibrate(
    subject: Subject,
    progress: Callable[[str], None],
    *,
    threshold: float = THRESHOLD,
    window: int = 3,
) -> Calibrated:
    """The patches that are left in the mean when the windows above a threshold merge.

    Args:
        subject: The model and the pictures.
        progress: Called with a line for each step.
        threshold: Least mean cosine between the patches of a window that merges.
        window: Side of a window in patches: w.

    Raises:
        PlanError: If the threshold is no cosine, the windows do not fit the grid, or so few are
            above the threshold that nothing would merge.
    """
    if not isinstance(threshold, int | float) or not -1 <= threshold <= 1:
        raise PlanError(f"mustdrop: got threshold={threshold}, expected a cosine, -1 to 1")
    encoder, spec = subject.encoder, subject.encoder.spec
    side, area = math.isqrt(spec.patches), window * window if isinstance(window, int) else 0
    if side * side != spec.patches or not isinstance(window, int) or not 2 <= window <= side:
        raise PlanError(
            f"mustdrop: got window={window} for {spec.patches} patches, expected 2 or more that fit"
            " a square grid"
        )
    counts = []
    for number, view in enumerate(subject.views(), 1):
        progress(f"mustdrop: windows of view {number}")
        tokens = encoder.layers[0](encoder.embedding(view))[0, int(spec.class_token) :]
        # A score is the mean of all w^4 cosines, those of a patch with itself included.
        others = (_scores(_windows(tokens, window)[0]) * area - 1) / (area - 1)
        counts.append(int((others >= threshold).sum()))
    mean = sum(counts) / len(counts)
    if not round(mean):
        raise PlanError(
            f"mustdrop: in the mean {mean:.2f} windows of a view are above threshold={threshold},"
            " so none would merge; take a lower one"
        )
    options: dict[str, OptionValue] = {"patches": spec.patches - round(mean) * (area - 1)}
    measured = {"windows_mean": mean, "windows_least": min(counts), "windows_most": max(counts)}
    return Calibrated(options | ({} if window == 3 else {"window": window}), measured)


def _windows(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Patches of each whole window [W, w * w, D] of a square grid x [n, D].

    Beside them the window of each patch, i64 [n]; -1 where it is in none.
    """
    side = math.isqrt(x.shape[0])
    across = side // window
    window_of = [
        row // window * across + column // window
        if row // window < across and column // window < across
        else -1
        for row in range(side)
        for column in range(side)
    ]
    members = [[p for p, w in enumerate(window_of) if w == i] for i in range(across * across)]
    inside = torch.tensor(members)
    return x.index_select(0, inside.flatten()).reshape(*inside.shape, -1), torch.tensor(window_of)


def _scores(patches: Tensor) -> Tensor:
    """Mean cosine of the patches of each window [W, w * w, D], with themselves too: f32 [W]."""
    unit = unit_rows(patches)
    return (unit @ unit.transpose(1, 2)).mean((1, 2))
