"""One frame of each scene: the video is cut where it changes most."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.runtimes.loops.images.picking import Frames, FramesMethod, changes

SUMMARY = (
    "One frame of each scene: the video is cut at the F - 1 largest changes, and the middle of each"
    " part is shown."
)
FORMULA = "cut where mean |x_i - x_(i-1)| is among the F - 1 largest; the middle of each part"
STATIC = "on the host; the graph sees F frames"
SOURCE = "ours; TDC-Video (Hoar012/TDC-Video) cuts at the lowest similarities of encoded frames"
DIFFERS = "pixels are compared, before any encoder; parts without any change are cut in halves"
COMPARED = "baseline"


class Method(FramesMethod):
    """The middle of each of F scenes.

    Args:
        look: Frames that are looked at; 0 is four for each frame that is shown.
    """

    def __call__(self, small: Frames, frames: int) -> Sequence[int]:
        """As `FramesMethod`."""
        change = changes(small)
        largest = sorted(range(len(change)), key=lambda i: -change[i])[: frames - 1]
        starts = sorted([0, *(index + 1 for index in largest if change[index] > 0)])
        while len(starts) < frames:
            ends = [*starts[1:], len(small)]
            _, at, end = max((e - s, s, e) for s, e in zip(starts, ends, strict=True))
            starts = sorted([*starts, (at + end) // 2])
        ends = [*starts[1:], len(small)]
        return [(start + end - 1) // 2 for start, end in zip(starts, ends, strict=True)]
