"""Restore what is lost when tokens leave: the mean, the weight and the position of a group.

Each of the N tokens belongs to the most similar kept token of its grid (cosine of features; of
equals the first), and a kept token to itself. Then, as asked:

    merge      a kept token becomes the mean of its group
    calibrate  attention to it gets log(size of the group), so that it weighs as much as the group
    median     its position is the group's median position in raster order

Each decoder layer adds the logarithm to its attention scores, in the columns of the visual tokens
in the KV cache (input `bias`).

Source: RESTORE (ICML 2026), sections on positions and on attention after reduction; from the paper.
Limits: O(N K) compares. A method that merges is grouped again, from its kept positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import ROUNDING, in_raster_order, unit_rows
from edgevlm.graphs.visual_shape import VisualShape, square_shape


class Restored(TokensMethod):
    """A method of site `tokens` with one or more of the three.

    Args:
        method: The method.
        merge: Tokens become the means of their groups.
        calibrate: A third output, the logarithms of the groups' sizes.
        median: Positions are the median positions of the groups.
    """

    def __init__(self, method: TokensMethod, merge: bool, calibrate: bool, median: bool) -> None:
        self.method, self.merge = method, merge
        self.calibrate, self.median = calibrate, median
        self.signals, self.global_times = method.signals, method.global_times
        self.keeps_rows = method.keeps_rows

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept by the method: K."""
        return self.method.plan(shape)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, ...]:
        """Reduce, then restore.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Those of the method.

        Returns:
            Tokens f32 [1, K, C], positions i32 [1, K] and, if calibrated, logarithms of sizes f32
            [1, K]; by ascending position.
        """
        tokens, positions = self.method(features, shape=shape, **signals)
        kept, at = tokens[0], positions[0].to(torch.int64)
        members = groups(features[0], at, shape or square_shape("restore", features))
        sizes = members.sum(0)
        if self.merge:
            kept = members.transpose(0, 1) @ features[0] / sizes.unsqueeze(1)
        logs = sizes.log()
        if self.median:
            at, kept, logs = in_raster_order(median_positions(members), kept, logs)
        reduced = kept.unsqueeze(0), at.to(torch.int32).unsqueeze(0)
        return (*reduced, logs.unsqueeze(0)) if self.calibrate else reduced


def groups(features: Tensor, kept: Tensor, shape: VisualShape) -> Tensor:
    """Which token is in which group: f32 [N, K], 1 or 0; no group is empty.

    Tokens of a grid without a kept token are in no group.

    Args:
        features: f32 [N, C].
        kept: Positions of the kept tokens, i64 [K].
        shape: The grids.
    """
    sizes = [h * w for h, w in shape.grids]
    grid = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    unit = unit_rows(features)
    cosine = (unit @ unit.index_select(0, kept).transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    same_grid = grid.unsqueeze(1) == grid.index_select(0, kept)  # [N, K]
    own = torch.arange(features.shape[0]).unsqueeze(1) == kept
    cosine = torch.where(own, 2.0, torch.where(same_grid, cosine, -2.0))
    nearest = cosine.argmax(1, keepdim=True) == torch.arange(kept.shape[0])
    return (nearest & same_grid).float()


def median_positions(members: Tensor) -> Tensor:
    """Median position of each group of members [N, K], the earlier of two: i64 [K]."""
    inside = members.to(torch.int64)
    half = (inside.sum(0) + 1) // 2
    is_median = (inside.cumsum(0) == half) & (inside > 0)
    return (is_median * torch.arange(members.shape[0]).unsqueeze(1)).sum(0)
