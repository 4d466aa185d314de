"""Give back what is lost when tokens leave: the mean of a group, its weight, and its place.

Each of the N tokens belongs to the kept token of its grid that is most like it (cosine of features;
of equals the first), and a kept token to itself. Then, as asked:

    merge      a kept token becomes the mean of its group
    calibrate  attention to it gets log(size of the group), so that it weighs as much as the group
    median     its position is the middle one of the group's, in raster order

Each decoder layer adds the logarithm to its scores, in the columns of the visual tokens' rows of
the cache (input `bias`).

Source: RESTORE (ICML 2026), sections on positions and on attention after reduction; from the paper.
Limits: O(N K) compares. Groups of a method that merges are made anew from its kept positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgevlm.graphs.selection import ROUNDING, VisualShape, in_raster_order, square_shape, unit_rows


class Restored:
    """A method of site `tokens` with one or more of the three.

    Args:
        method: The method.
        merge: Tokens become the means of their groups.
        calibrate: A third output, the logarithms of the groups' sizes.
        median: Positions are the middle ones of the groups.
    """

    def __init__(self, method: Any, merge: bool, calibrate: bool, median: bool) -> None:
        self.method, self.merge = method, merge
        self.calibrate, self.median = calibrate, median
        self.signals: tuple[str, ...] = method.signals

    def plan(self, shape: VisualShape) -> int:
        """As the method's."""
        kept: int = self.method.plan(shape)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, ...]:
        """Reduce, then give back.

        Args:
            features: f32 [1, N, C].
            shape: The grids; None is one square grid.
            **signals: Those of the method.

        Returns:
            Tokens f32 [1, K, C], positions i32 [1, K] and, if calibrated, logarithms of sizes f32
            [1, K]; by ascending position.
        """
        tokens, positions = self.method(features, shape=shape, **signals)
        rows, places = tokens[0], positions[0].to(torch.int64)
        members = groups(features[0], places, shape or square_shape("restore", features))
        sizes = members.sum(0)
        if self.merge:
            rows = members.transpose(0, 1) @ features[0] / sizes.unsqueeze(1)
        logs = sizes.log()
        if self.median:
            places, rows, logs = in_raster_order(middle(members), rows, logs)
        made = rows.unsqueeze(0), places.to(torch.int32).unsqueeze(0)
        return (*made, logs.unsqueeze(0)) if self.calibrate else made


def groups(features: Tensor, kept: Tensor, shape: VisualShape) -> Tensor:
    """Which token is in which group: f32 [N, K], 1 or 0; no group has none.

    A grid without a kept token is in no group.

    Args:
        features: f32 [N, C].
        kept: Positions of the kept tokens, i64 [K].
        shape: The grids.
    """
    sizes = [h * w for h, w in shape.grids]
    grid = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    unit = unit_rows(features)
    alike = (unit @ unit.index_select(0, kept).transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    near = grid.unsqueeze(1) == grid.index_select(0, kept)  # [N, K]
    own = torch.arange(features.shape[0]).unsqueeze(1) == kept
    alike = torch.where(own, 2.0, torch.where(near, alike, -2.0))
    best = alike.argmax(1, keepdim=True) == torch.arange(kept.shape[0])
    return (best & near).float()


def middle(members: Tensor) -> Tensor:
    """Middle position of each group of members [N, K], the earlier of two: i64 [K]."""
    inside = members.to(torch.int64)
    wanted = (inside.sum(0) + 1) // 2
    here = (inside.cumsum(0) == wanted) & (inside > 0)
    return (here * torch.arange(members.shape[0]).unsqueeze(1)).sum(0)
