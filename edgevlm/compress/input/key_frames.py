"""Frames that the video's encoder chose as key frames: one at least a scene, and the cheapest."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.runtimes.loops.images.picking import Frames, FramesMethod, evenly

SUMMARY = (
    "Key frames of the video's container: each is decoded alone, so they are the cheapest;"
    " encoders begin scenes with one."
)
FORMULA = "F of the key frames found at `look` times, at equal distances"
STATIC = "on the host; the graph sees F frames"
SOURCE = "ours: the key frames (sync samples) of the container, as players seek them"
DIFFERS = "no paper; where there are fewer than F key frames, frames are even in time"
COMPARED = "baseline"


class Method(FramesMethod):
    """Key frames.

    Args:
        look: Times at which the key frame before is sought; 0 is four for each frame.
    """

    key_frames = True

    def __call__(self, small: Frames, frames: int) -> Sequence[int]:
        """As `FramesMethod`."""
        return evenly(len(small), frames)
