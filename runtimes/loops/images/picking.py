"""Which frames of a video are shown: `host.image.picker`, a method of site `input`.

    candidates, evenly in time -> small -> picked -> their places in the video

`Method` of a file in `compress/input/` derives from `FramesMethod` here, since it runs without
torch. What it picks is decoded again, and goes to the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.bundle.host import MOST_CANDIDATES, ImageSpec
from edgevlm.registry import METHODS
from edgevlm.runtimes.loops.images import seeking
from edgevlm.runtimes.loops.images.reader import Reader

Places = NDArray[np.float64]  # numbers of frames, from 0, at a constant rate
LOOKS = 4  # candidates for each frame, unasked
SIDE = 32  # pixels of a candidate's sides

Frames = NDArray[np.uint8]


class FramesMethod:
    """What picks frames of a video.

    Attributes:
        signals: Of the encoder; none, for it has not run.
        key_frames: Candidates are key frames of the video alone, and are not decoded to be picked.
    """

    signals: tuple[str, ...] = ()
    key_frames: bool = False

    def __init__(self, look: int = 0) -> None:
        if look < 0:
            raise ValueError(f"got look={look}, expected 0 or more")
        self.look = look

    def candidates(self, frames: int) -> int:
        """How many frames are looked at to pick `frames`: `look`, or four for each.

        Raises:
            ValueError: If they are fewer than `frames`, or more than 1,024.
        """
        count = self.look or min(LOOKS * frames, MOST_CANDIDATES)
        if not frames <= count <= MOST_CANDIDATES:
            raise ValueError(f"got look={count}, expected {frames} (--frames) to {MOST_CANDIDATES}")
        return count

    def look_at(self, picture: Image.Image) -> NDArray[Any]:
        """What is compared of a candidate: 32x32 pixels u8, unless a method says otherwise."""
        return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))

    def __call__(self, small: Frames, frames: int) -> Sequence[int]:
        """Pick.

        Args:
            small: Candidates in the order of time, u8 [n, 32, 32, 3]; [n, 0, 0, 3] of key frames.
            frames: F, at most n.

        Returns:
            F different indices of candidates, ascending.
        """
        raise NotImplementedError


def evenly(count: int, frames: int) -> list[int]:
    """`frames` different indices of `count`, at equal distances."""
    return [int(index) for index in np.linspace(0, count - 1, frames).round()]


def changes(small: Frames) -> NDArray[np.float64]:
    """How much each candidate differs from the one before: mean of |x - y|, f64 [n - 1]."""
    values = small.astype(np.float64)
    return np.asarray(np.abs(values[1:] - values[:-1]).mean((1, 2, 3)))


@dataclass(frozen=True)
class Picker:
    """A method of site `input`, and how many frames it looks at."""

    method: FramesMethod
    candidates: int

    def all_shown(self, frames: int) -> bool:
        """Whether there is nothing to pick."""
        return self.candidates == frames and not self.method.key_frames

    def of_span(self, reader: Reader, span: seeking.Span, frames: int) -> Places | None:
        """Places of the frames to show; None if they are even in time.

        They are where as many are looked at as are shown, or fewer are found.
        """
        if self.all_shown(frames):
            return None
        wanted = np.linspace(0, span.frames - 1, self.candidates)
        small = dict[int, NDArray[Any]]()
        if self.method.key_frames:
            small = {key: _nothing() for key in seeking.keys(reader, span, wanted)}
        else:
            for frame in seeking.nearest(reader, span, wanted):
                if frame.pts not in small:
                    small[frame.pts] = self.method.look_at(reader.picture(frame))
                del frame
        if len(small) < frames:
            return None
        stamps, pictures = zip(*sorted(small.items()), strict=True)
        chosen = self.method(np.stack(pictures), frames)
        return (np.asarray(stamps, np.float64)[list(chosen)] - span.first) / span.step

    def of_decoded(
        self, reader: Reader, decoded: Iterable[Any], count: int, frames: int
    ) -> list[int] | None:
        """Numbers of the frames to show, of a video that is decoded whole; None as `of_span`."""
        if self.all_shown(frames):
            return None
        wanted = set(evenly(count, self.candidates))
        small = dict(self._looked(reader, decoded, wanted))
        if len(small) < frames:
            return None
        numbers, pictures = zip(*small.items(), strict=True)
        return [numbers[index] for index in self.method(np.stack(pictures), frames)]

    def _looked(
        self, reader: Reader, decoded: Iterable[Any], wanted: set[int]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        for index, frame in enumerate(decoded):
            if self.method.key_frames and frame.key_frame:
                yield index, _nothing()
            elif not self.method.key_frames and index in wanted:
                yield index, self.method.look_at(reader.picture(frame))


def picker_of(image: ImageSpec) -> Picker | None:
    """What picks frames of a video for a bundle; None if they are even in time."""
    if not image.picker:
        return None
    method = METHODS.load(image.picker, "input").Method
    return Picker(method(), image.candidates)


def _nothing() -> NDArray[np.uint8]:
    return np.zeros((0, 0, 3), np.uint8)
