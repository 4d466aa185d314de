"""Frames of a video, spread evenly in time, upright as its container says, by PyAV.

Each is sought (`seeking`), so that a long video costs what its frames do; where frames have no
time stamps, as in a raw stream, they are counted by decoding the whole video.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.libraries import require
from edgevlm.runtimes.loops.images import seeking
from edgevlm.runtimes.loops.images.picking import Picker, evenly
from edgevlm.runtimes.loops.images.reader import Reader, rate_of, reason_of
from edgevlm.runtimes.loops.images.room import Room
from edgevlm.runtimes.loops.images.sources import Source, is_source, name_of, opened

Shrink = Callable[[Image.Image], Image.Image]
Clip = tuple[list[Image.Image], list[float], float]


def load_clip(
    video: Source,
    frames: int,
    shrink: Shrink = lambda picture: picture,
    room: Room = Room(),
    picker: Picker | None = None,
) -> Clip:
    """Decode `frames` frames of a video: evenly in time, first and last included, or picked.

    Args:
        video: A path, the file's bytes, or a binary file.
        frames: At least 2.
        shrink: Applied to each frame as soon as it is decoded, so that one at a time is in memory.
        room: Memory that decoding may take.
        picker: What picks them; where it finds too few, they are even in time.

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
        reader = Reader(av, file, name, room)
        try:
            clip = _sought(reader, frames, shrink, picker)
            return clip or _counted(reader, frames, shrink, picker)
        except Exception as cause:  # of many types; those of PyAV repeat the name and a number
            ours = isinstance(cause, InputError | MemoryError)
            if ours and not isinstance(cause, av.error.FFmpegError):
                raise
            raise InputError(f"{name} cannot be read as a video: {reason_of(cause)}") from cause


def prepare(clips: bool) -> None:
    """Import what decoding needs, so that a memory budget counts it before blocks are planned."""
    Image.init()
    if clips:
        with suppress(ImportError):  # frames may come as pictures
            importlib.import_module("av")


def _sought(reader: Reader, frames: int, shrink: Shrink, picker: Picker | None) -> Clip | None:
    """The clip by time stamps; None where there are none, or fewer frames than wanted."""
    try:
        span = seeking.measured(reader)
        if span is None:
            return None
        places = picker.of_span(reader, span, frames) if picker else None
        if places is None:
            places = np.linspace(0, span.frames - 1, frames)
        chosen, pictures = list[int](), dict[int, Image.Image]()
        for frame in seeking.nearest(reader, span, places):
            if frame.pts not in pictures:
                pictures[frame.pts] = shrink(reader.picture(frame))
            chosen.append(frame.pts)
            del frame
    except (reader.av.error.FFmpegError, seeking.NoStampError):
        return None  # decoding the whole clip says what is wrong
    if len(chosen) < frames or (len(pictures) < frames and seeking.few(reader, frames)):
        return None
    times = [(stamp - span.first) * span.unit for stamp in chosen]
    return [pictures[stamp] for stamp in chosen], times, _duration(span.seconds, span.frames)


def _counted(reader: Reader, frames: int, shrink: Shrink, picker: Picker | None) -> Clip:
    """The clip by the frames that its decoder gives: all are decoded, twice."""
    seconds = list[float]()
    with reader.open() as container:
        stream = reader.stream(container)
        rate = rate_of(stream)
        for index, frame in enumerate(reader.decode(container, stream)):
            seconds.append(index / rate if frame.time is None else frame.time)
    _check_count(reader, len(seconds), frames)
    chosen = None
    if picker:
        with reader.open() as container:
            decoded = reader.decode(container, reader.stream(container))
            chosen = picker.of_decoded(reader, decoded, len(seconds), frames)
    if chosen is None:
        chosen = evenly(len(seconds), frames)
    pictures: dict[int, Image.Image] = {}
    with reader.open() as container:
        for index, frame in enumerate(reader.decode(container, reader.stream(container))):
            if index in chosen:
                pictures[index] = shrink(reader.picture(frame))
    if seconds[-1] <= seconds[0]:  # stamps that say nothing: frames at the rate instead
        seconds = [index / rate for index in range(len(seconds))]
    times = [seconds[index] - seconds[0] for index in chosen]
    duration = _duration(seconds[-1] - seconds[0], len(seconds))
    return [pictures[index] for index in chosen], times, duration


def _check_count(reader: Reader, count: int, frames: int) -> None:
    if count < frames:
        raise InputError(f"{reader.name} has {count} frames, the bundle needs {frames}")


def _duration(seconds: float, count: int) -> float:
    """Seconds of a clip of `count` frames: those from the first frame to the last, and of that."""
    return seconds * count / (count - 1)
