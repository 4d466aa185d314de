"""Frames at equal distances in time: what holds unasked."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.runtimes.loops.images.picking import Frames, FramesMethod, evenly

SUMMARY = "Frames at equal distances in time, first and last included: what holds unasked."
FORMULA = "t_i = i / (F - 1) of the video"
STATIC = "on the host; the graph sees F frames"
SOURCE = "what most models' own processors do with a video"
DIFFERS = "nothing is looked at first"
COMPARED = "baseline"


class Method(FramesMethod):
    """Equal distances in time."""

    def __init__(self) -> None:
        super().__init__()

    def candidates(self, frames: int) -> int:
        """All that are looked at are shown."""
        return frames

    def __call__(self, small: Frames, frames: int) -> Sequence[int]:
        """As `FramesMethod`."""
        return evenly(len(small), frames)
