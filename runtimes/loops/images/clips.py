"""Frames of a video, spread evenly, upright as its container says, by PyAV.

    packets -> time stamps of the frames -> those wanted -> each sought from the key frame before it

A container may count what a decoder never gives: packets of hidden frames or of halves of frames,
packets without a stamp. So every stretch that is decoded is compared with what was counted, and on
the first difference the frames are counted by decoding the whole clip.
"""

from __future__ import annotations

import importlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.libraries import first_line, require
from edgevlm.runtimes.loops.images.eight_bit import STRIP_PIXELS
from edgevlm.runtimes.loops.images.room import Room, check_size
from edgevlm.runtimes.loops.images.sources import Source, is_source, name_of, opened

Shrink = Callable[[Image.Image], Image.Image]
Clip = tuple[list[Image.Image], list[float], float]

# Bytes of a pixel as decoders keep it (4:2:0, 8 bits), and as RGB with its copy in strips; a
# resize is on top. A decoder holds several frames: 4 to 11 of 1.5 bytes were measured.
FRAME_BYTES, RGB_FRAME_BYTES = 1.5, 7.5
FIRST_FRAMES, NEXT_FRAMES = 5, 3
SEEKS = 2  # key frames before the wanted one that are tried too

STRAIGHT = (1.0, 0.0, 0.0, 1.0)
# By the display matrix a, b, c, d of a quarter turn: a pixel (x, y) is shown at (ax + cy, bx + dy).
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
# A video is a single file: a playlist cannot name others, here or on the network.
_OPTIONS = {"protocol_whitelist": "none"}


def load_clip(
    video: Source, frames: int, shrink: Shrink = lambda picture: picture, room: Room = Room()
) -> Clip:
    """Decode `frames` frames spread evenly over a video, first and last included.

    Args:
        video: A path, the file's bytes, or a binary file.
        frames: At least 2.
        shrink: Applied to each frame as soon as it is decoded, so that one at a time is in memory.
        room: Memory that decoding may take.

    Returns:
        The RGB frames, their times in seconds, and the clip's duration in seconds, that of its last
        frame among them.

    Raises:
        InputError: If PyAV is missing, or the file is not a video or has too few frames.
    """
    av = require("reading a video", "PyAV", "av", "video", InputError)
    if not is_source(video):
        raise InputError(f"expected a video: a path, bytes or an open file, got {type(video)}")
    name = name_of(video, "video")
    with opened(video, "video") as file:
        reader = _Reader(av, file, name, room)
        try:
            return _sought(reader, frames, shrink) or _counted(reader, frames, shrink)
        except (InputError, MemoryError):
            raise
        except Exception as cause:  # of many types; those of PyAV repeat the name and a number
            reason = getattr(cause, "strerror", None) or first_line(cause)
            raise InputError(f"{name} cannot be read as a video: {reason}") from cause


def prepare(clips: bool) -> None:
    """Import what decoding needs, so that a memory budget counts it before blocks are planned."""
    Image.init()
    if clips:
        with suppress(ImportError):  # frames may come as pictures
            importlib.import_module("av")


@dataclass(frozen=True)
class _Reader:
    """Opens a video as often as necessary."""

    av: Any
    file: Any
    name: str
    room: Room

    def open(self) -> Any:
        """The container, at its beginning."""
        self.file.seek(0)
        return self.av.open(self.file, options=_OPTIONS)

    def stream(self, container: Any) -> Any:
        """The first stream of moving pictures: the cover of a song is not one."""
        pictures = self.av.stream.Disposition.attached_pic
        for stream in container.streams.video:
            if not stream.disposition & pictures:
                if stream.codec_context is None:
                    raise InputError(
                        f"{self.name} has a video in a format that FFmpeg cannot decode; convert it"
                        " to H.264"
                    )
                if stream.width and stream.height:  # else known once a frame is decoded
                    check_size((stream.width, stream.height), self.name, "has frames of")
                return stream
        covers = ["a cover"] if container.streams.video else []
        kinds = sorted({s.type for s in container.streams} - {"video"}) + covers
        raise InputError(f"{self.name} has no video, only {' and '.join(kinds) or 'its header'}")

    def decode(self, container: Any, stream: Any) -> Iterator[Any]:
        """The frames from here on, each once there is room for the next ones."""
        if self.room.bounded and not stream.codec_context.is_open:
            stream.codec_context.thread_count = 1  # each thread has frames of its own
        size = FRAME_BYTES * stream.width * stream.height
        self.room.claim(FIRST_FRAMES * size, self.name, "takes at least")
        for frame in container.decode(stream):
            check_size((frame.width, frame.height), self.name, "has frames of")
            yield frame
            size = FRAME_BYTES * frame.width * frame.height
            del frame
            self.room.claim(NEXT_FRAMES * size, self.name, "takes at least")

    def picture(self, frame: Any) -> Image.Image:
        """A frame as RGB, turned as the container says."""
        matrix, pixels = _matrix(frame), frame.width * frame.height
        size = RGB_FRAME_BYTES * pixels + (4 * pixels if matrix != STRAIGHT else 0)
        self.room.claim(size, self.name, "takes at least")
        array = frame.to_ndarray(format="rgb24")
        picture = Image.new("RGB", (frame.width, frame.height))
        rows = max(1, STRIP_PIXELS // frame.width)
        for top in range(0, frame.height, rows):
            picture.paste(Image.fromarray(array[top : top + rows]), (0, top))
        del array
        return _upright(picture, matrix)


def _sought(reader: _Reader, frames: int, shrink: Shrink) -> Clip | None:
    """The clip by the container's time stamps; None where they are not those of the frames."""
    stamps, keys, unit = _listed(reader)
    if not stamps:
        return None
    _check_count(reader, len(stamps), frames)
    chosen = [stamps[i] for i in _spread(len(stamps), frames)]
    pictures: dict[int, Image.Image] = {}
    try:
        with reader.open() as container:
            stream = reader.stream(container)
            decoded, last = reader.decode(container, stream), stamps[0] - 1
            for stamp in dict.fromkeys(chosen):
                key = keys[max(0, bisect_right(keys, stamp) - 1)] if keys else last
                if last >= stamps[0] and last < key <= stamp:
                    decoded, last = _seek(reader, container, stream, keys, key), key - 1
                for expected in stamps[bisect_right(stamps, last) : bisect_right(stamps, stamp)]:
                    frame = _next(decoded, last)
                    if frame is None or frame.pts != expected:
                        return None
                    last = expected
                pictures[stamp] = shrink(reader.picture(frame))
                del frame
    except reader.av.error.FFmpegError:
        return None  # decoding the whole clip says what is wrong
    times = [(stamp - stamps[0]) * unit for stamp in chosen]
    duration = _duration((stamps[-1] - stamps[0]) * unit, len(stamps))
    return [pictures[stamp] for stamp in chosen], times, duration


def _listed(reader: _Reader) -> tuple[list[int], list[int], float]:
    """Time stamps of the frames to show and of the key frames, in order, and seconds of a unit.

    The first list is empty where a packet has no stamp, or two have the same.
    """
    stamps, keys = list[int | None](), list[int]()
    with reader.open() as container:
        stream = reader.stream(container)
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if not packet.is_discard:  # else cut off by an edit list
                stamps.append(packet.pts)
        unit = float(stream.time_base or 0)
    known = sorted(stamp for stamp in stamps if stamp is not None)
    sound = len(set(known)) == len(stamps) and unit > 0
    return known if sound else [], sorted(keys), unit


def _seek(
    reader: _Reader, container: Any, stream: Any, keys: Sequence[int], key: int
) -> Iterator[Any]:
    """The frames from a key frame on: some containers find only the one after the one sought."""
    index = bisect_left(keys, key)
    for earlier in reversed(keys[max(0, index - SEEKS) : index + 1]):
        container.seek(earlier, stream=stream)
        decoded = reader.decode(container, stream)
        first = _next(decoded, key - 1)
        if first is not None and first.pts == key:
            return chain([first], decoded)
    return iter(())


def _next(decoded: Iterator[Any], after: int) -> Any:
    """The next frame of a decoder whose stamp is later; None at the end."""
    return next((f for f in decoded if f.pts is None or f.pts > after), None)


def _counted(reader: _Reader, frames: int, shrink: Shrink) -> Clip:
    """The clip by the frames that its decoder gives: all are decoded, twice."""
    seconds = list[float]()
    with reader.open() as container:
        stream = reader.stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        for index, frame in enumerate(reader.decode(container, stream)):
            seconds.append(index / rate if frame.time is None else frame.time)
    _check_count(reader, len(seconds), frames)
    chosen = _spread(len(seconds), frames)
    pictures: dict[int, Image.Image] = {}
    with reader.open() as container:
        for index, frame in enumerate(reader.decode(container, reader.stream(container))):
            if index in chosen:
                pictures[index] = shrink(reader.picture(frame))
    times = [seconds[index] - seconds[0] for index in chosen]
    duration = _duration(seconds[-1] - seconds[0], len(seconds))
    return [pictures[index] for index in chosen], times, duration


def _check_count(reader: _Reader, count: int, frames: int) -> None:
    if count < frames:
        raise InputError(f"{reader.name} has {count} frames, the bundle needs {frames}")


def _duration(seconds: float, count: int) -> float:
    """Seconds of a clip of `count` frames: those from the first frame to the last, and of that."""
    return seconds * count / (count - 1)


def _spread(count: int, frames: int) -> Sequence[int]:
    """Indices of `frames` of `count`, at equal distances."""
    return [int(index) for index in np.linspace(0, count - 1, frames).round()]


def _matrix(frame: Any) -> tuple[float, ...]:
    """The display matrix a, b, c, d of a frame; of no turn without one."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return STRAIGHT
    return tuple(np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]] / 65536)


def _upright(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """A picture turned by a display matrix; by an odd angle it keeps its size."""
    size = max(map(abs, matrix)) or 1.0
    quarter = tuple(round(value / size) for value in matrix)
    if quarter == (1, 0, 0, 1):
        return picture
    if quarter in _TURNS:
        return picture.transpose(_TURNS[quarter])
    angle = -math.degrees(math.atan2(matrix[1], matrix[0]))
    return picture.rotate(angle, Image.Resampling.BILINEAR)
