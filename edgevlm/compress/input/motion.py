"""More frames where more happens: equal shares of all change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevlm.runtimes.loops.images.picking import Frames, FramesMethod, changes

SUMMARY = (
    "More frames where more moves: between two frames that are shown lies an equal share of all"
    " change. What stands still takes few."
)
FORMULA = (
    "frames at equal steps of c(t) = sum of mean |x_i - x_(i-1)| to t, first and last included"
)
STATIC = "on the host; the graph sees F frames"
SOURCE = "ours: equal steps of the cumulated difference of frames"
DIFFERS = "no paper; a hundredth of the change counts as spread evenly, so that a still is uniform"
COMPARED = "baseline"

EVEN = 0.01  # of all change


class Method(FramesMethod):
    """Equal shares of all change.

    Args:
        look: Frames that are looked at; 0 is four for each frame that is shown.
    """

    def __call__(self, small: Frames, frames: int) -> Sequence[int]:
        """As `FramesMethod`."""
        change = changes(small)
        change += EVEN * change.mean() + 1e-9
        passed = np.concatenate([[0.0], change.cumsum()])
        wanted = np.linspace(0, passed[-1], frames)
        picked = [int(np.abs(passed - value).argmin()) for value in wanted]
        for index in range(1, frames):  # a jump may be the nearest to several
            picked[index] = max(picked[index], picked[index - 1] + 1)
        for index in reversed(range(frames)):
            picked[index] = min(picked[index], len(small) - frames + index)
        return picked
