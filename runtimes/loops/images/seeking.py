"""Frames at equal distances in time, each decoded from the key frame before it.

Nothing is read but the beginning, the end, and what lies between the frames and their key frames:
an hour costs what a minute does. Only if the end cannot be sought are all packets read, though not
decoded. The times are those of decoded frames, so packets of hidden frames, or of half a frame, do
not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.runtimes.loops.images.reader import Reader, rate_of

# Seconds before the wanted one that are sought in turn, since some containers find the key frame
# behind it, or one of another stream.
BACK = (0, 0.3, 1, 4, 16, 64, 256, 1024)
MICROSECOND = 1e-6  # in which a container counts, whatever its streams do


class NoStampError(Exception):
    """A frame without a time stamp."""


@dataclass(frozen=True)
class Span:
    """First and last time stamp of the frames, seconds of their unit, and how many there are.

    Their number follows from the rate, and is right if that is constant.
    """

    first: int
    last: int
    unit: float
    frames: int

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return (self.last - self.first) * self.unit

    @property
    def step(self) -> float:
        """Units between two frames."""
        return (self.last - self.first) / (self.frames - 1)


def measured(reader: Reader) -> Span | None:
    """Where a video begins and ends; None if its first frame has no time stamp, or is its last."""
    with reader.open() as container:
        stream = reader.stream(container)
        first = next(reader.decode(container, stream), None)
        if first is None or first.pts is None or not stream.time_base:
            return None
        begin, unit = int(first.pts), float(stream.time_base)
        del first
        rate = rate_of(stream)
        length = (stream.duration or 0) * unit or (container.duration or 0) * MICROSECOND
    last = _last(reader, unit, begin, length)
    if last <= begin:
        return None
    return Span(begin, last, unit, max(2, round((last - begin) * unit * rate) + 1))


def nearest(reader: Reader, span: Span, places: Iterable[float]) -> Iterator[Any]:
    """The frames nearest to some places; one that is shown for long may come twice.

    Args:
        reader: The video.
        span: Where it begins and ends.
        places: Numbers of frames at a constant rate, from 0, ascending.

    Raises:
        NoStampError: If a decoded frame has no time stamp.
    """
    with reader.open() as scout, reader.open() as container:
        seeker, stream = reader.stream(scout), reader.stream(container)
        decoded, before, after = reader.decode(container, stream), None, None
        for index in places:
            target = span.first + index * span.step
            if after is None or after.pts < target:
                offset, key = _key(reader, scout, seeker, span, target)
                if after is not None and key > after.pts:
                    container.seek(offset, stream=stream)
                    decoded, before, after = reader.decode(container, stream), None, None
                while after is None or after.pts < target:
                    last = after.pts if after is not None else key - 1
                    following = _next(reader, decoded, last)
                    if following is None:  # the end; what was decoded last is the nearest
                        before = after if after is not None else before
                        break
                    before, after = after, following
            chosen = _nearer(before, after, index, target, span)
            if chosen is None:
                return
            yield chosen


def keys(reader: Reader, span: Span, places: Iterable[float]) -> list[int]:
    """Time stamps of the key frames before some places, each once; nothing is decoded."""
    with reader.open() as scout:
        stream = reader.stream(scout)
        targets = [span.first + place * span.step for place in places]
        return sorted({_key(reader, scout, stream, span, target)[1] for target in targets})


def few(reader: Reader, frames: int) -> bool:
    """Whether a video has fewer frames than `frames`, by its packets."""
    return sum(1 for _ in _packets(reader, None)) < frames


def _last(reader: Reader, unit: float, begin: int, length: float) -> int:
    """The latest time stamp, found near the end, or by reading all packets.

    Args:
        reader: The video.
        unit: Seconds of a time stamp's unit.
        begin: The first time stamp.
        length: Seconds that the container says; 0 if it does not.
    """
    for seconds in BACK if length else ():
        stamps = list(_packets(reader, begin + int(max(0.0, length - seconds) / unit)))
        if stamps and max(stamps) > begin:
            return max(stamps)
    return max(_packets(reader, None), default=begin)


def _packets(reader: Reader, offset: int | None) -> Iterator[int]:
    """Time stamps of the packets to show, from an offset on; as far as they can be read."""
    with reader.open() as container:
        stream = reader.stream(container)
        try:
            if offset is not None:
                container.seek(offset, stream=stream)
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and not packet.is_discard:
                    yield packet.pts  # one that is discarded is cut off by an edit list
        except reader.av.error.FFmpegError:
            return  # the file ends before it should


def _key(reader: Reader, container: Any, stream: Any, span: Span, target: float) -> tuple[int, int]:
    """What to seek for the key frame before a time, and that key frame's time stamp."""
    for seconds in BACK:
        offset = max(span.first, int(target - seconds / span.unit))
        with_stamp = _found_key(reader, container, stream, offset)
        if with_stamp is not None and with_stamp <= target:
            return offset, with_stamp
    return span.first, span.first


def _found_key(reader: Reader, container: Any, stream: Any, offset: int) -> int | None:
    try:
        container.seek(offset, stream=stream)
        packets = container.demux(stream)
        return next((p.pts for p in packets if p.is_keyframe and p.pts is not None), None)
    except reader.av.error.FFmpegError:
        return None


def _next(reader: Reader, decoded: Iterator[Any], after: int) -> Any:
    """The next frame of a decoder whose stamp is later; None at the end, or where it is damaged."""
    try:
        for frame in decoded:
            if frame.pts is None:
                raise NoStampError
            if frame.pts > after:
                return frame
    except reader.av.error.FFmpegError:
        return None
    return None


def _nearer(before: Any, after: Any, index: float, target: float, span: Span) -> Any:
    """Of two frames that follow each other the one nearer to a time, or the one that there is.

    Between two frames of a constant rate it is the one of the rounded index, as numpy rounds.
    """
    if before is None or after is None or after.pts <= target:
        return before if after is None else after
    places = [(frame.pts - span.first) / span.step for frame in (before, after)]
    low, high = map(round, places)
    # Time stamps are whole numbers of units: they differ from those of a constant rate by one.
    regular = all(abs(place - round(place)) * span.step <= 1 for place in places)
    if regular and high - low == 1:
        return after if np.round(index) >= high else before
    return after if after.pts - target < target - before.pts else before
