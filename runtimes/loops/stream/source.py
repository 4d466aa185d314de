"""Frames of a stream, picked by their time, by PyAV in a thread of its own.

    a path                  a file, as fast as it is taken; paced, as fast as its clock says
    /dev/video0             a camera (Video4Linux)
    rtsp://…, http(s)://…   that address alone: no redirect, no playlist, which would name others
    -                       what comes on stdin

Of each 1 / fps seconds the first frame counts. Cameras, addresses, stdin and paced files are live:
what nobody takes in time is dropped. A source whose clock goes back goes on where it was.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from PIL import Image

from edgevlm.errors import InputError
from edgevlm.libraries import first_line, require
from edgevlm.runtimes.containers import STREAMED, formats_of
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.images.pictures import Picture
from edgevlm.runtimes.loops.images.reader import display_matrix, rate_of, reason_of, shown
from edgevlm.runtimes.loops.images.room import check_size
from edgevlm.runtimes.loops.images.sources import is_source, name_of, opened
from edgevlm.runtimes.loops.stream.ring import Frames, Ring
from edgevlm.runtimes.loops.stream.rtsp import relayed

STDIN, DEVICE = "-", "/dev/video"
# What each address may use beside itself; of RTSP the relay's TCP alone.
PROTOCOLS = {
    "rtsp": "rtsp,tcp", "rtsps": "rtsp,tcp", "http": "http,tcp", "https": "https,tls,tcp",
}  # fmt: skip
OPEN_S, READ_S = 10.0, 30.0  # an address that says nothing for so long has ended
MOST_GAP_S = 60.0  # that a paced file waits for its next frame

Timed = tuple[float, Any]


def is_live(source: Any, pace: bool) -> bool:
    """Whether frames come by a clock, whoever takes them."""
    if not isinstance(source, str | os.PathLike):
        return False
    text = os.fspath(source)
    named = text == STDIN or text.startswith(DEVICE) or scheme(text) in PROTOCOLS
    return pace or named


def scheme(text: str) -> str:
    """The protocol of an address, in small letters; empty for a path."""
    name, mark, _ = text.partition("://")
    return name.lower() if mark else ""


def start(
    source: Any, ring: Ring, fps: float, pace: bool, depth: int, shrink: Callable[[Any], Any]
) -> threading.Thread:
    """Begin to put frames into a ring.

    Args:
        source: A path, an address, `-`, a file's bytes, an open file, or pictures one by one.
        ring: Where they go; it is closed at the end, and ends the thread when it is closed.
        fps: Frames a second of the stream's time.
        pace: Whether a file goes by its clock.
        depth: Frames of a view.
        shrink: Makes a frame small, in the thread.
    """
    timed = _decoded(source) if is_source(source) else _given(source, fps)

    def work() -> None:
        error, group = None, list[Timed]()
        begun = time.monotonic()
        try:
            for seconds, make in picked(timed, fps):
                late = begun + seconds - time.monotonic()
                if pace and late > MOST_GAP_S:  # a clock that jumps: it goes on from here
                    begun -= late
                elif pace and late > 0:
                    time.sleep(late)
                group.append((seconds, shrink(make())))
                if len(group) == depth:
                    times, pictures = zip(*group, strict=True)
                    if not ring.put(Frames(times, pictures)):
                        break
                    group = []
                if ring.closed:
                    break
        except InputError as cause:
            error = cause
        except Exception as cause:  # of a caller's pictures, or a decoder's
            error = InputError(f"{_name(source)} cannot be read: {first_line(cause)}")
        finally:
            ring.close(error)

    thread = threading.Thread(target=work, name="frames", daemon=True)
    thread.start()
    return thread


def picked(timed: Iterable[Timed], fps: float) -> Iterator[Timed]:
    """The first of each 1 / fps seconds, with times from 0 that never go back."""
    first, last, due = None, 0.0, 0.0
    for seconds, frame in timed:
        first = seconds if first is None else first
        if seconds - first < last:  # a clock that began again
            first = seconds - last
        last = seconds - first
        if last >= due - 1e-6:
            due = (math.floor(last * fps + 1e-6) + 1) / fps
            yield last, frame


def _given(pictures: Any, fps: float) -> Iterator[Timed]:
    """Pictures of a caller, at equal distances.

    Raises:
        InputError: If it is nothing that gives pictures.
    """
    if not isinstance(pictures, Iterable):
        raise InputError(
            f"expected a video or frames one by one, got {type(pictures).__name__}; give a path,"
            " an address, or an iterable of pictures"
        )

    def load(picture: Picture) -> Callable[[], Image.Image]:
        return lambda: images.load(picture)

    return ((index / fps, load(picture)) for index, picture in enumerate(pictures))


def _decoded(source: Any) -> Iterator[Timed]:
    """Times of all frames, each with what makes it a picture."""
    av = require("reading a video", "PyAV", "av", "video", InputError)
    name = _name(source)
    waits = f"did not answer within {OPEN_S:g} s"
    try:
        with ExitStack() as stack:
            container = stack.enter_context(_container(av, source, stack))
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise InputError(f"{name} has no video that FFmpeg can decode")
            rate = rate_of(stream)
            matrix = None  # of all frames, as the first one says
            waits = f"sent no frame for {READ_S:g} s"
            for index, frame in enumerate(container.decode(stream)):
                matrix = display_matrix(frame) if matrix is None else matrix
                check_size((frame.width, frame.height), name, "has frames of")
                yield index / rate if frame.time is None else frame.time, _maker(frame, matrix)
    except av.error.ExitError as cause:  # PyAV's, when its time is over
        raise InputError(f"{name} {waits}") from cause
    except av.error.FFmpegError as cause:
        raise InputError(f"{name} cannot be read as a video: {reason_of(cause)}") from cause


def _maker(frame: Any, matrix: tuple[float, ...]) -> Callable[[], Image.Image]:
    return lambda: shown(frame, matrix)


def _container(av: Any, source: Any, stack: ExitStack) -> Any:
    """The container of a source, which reads nothing else.

    Raises:
        InputError: If it is an address of another kind, or no file.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    whole, protocol = {"protocol_whitelist": "none"}, scheme(text)
    if text == STDIN:
        file = stack.enter_context(os.fdopen(os.dup(0), "rb", buffering=0))
        return av.open(file, options=whole | {"format_whitelist": STREAMED})
    if text.startswith(DEVICE):
        return av.open(text, format="v4l2", options={"protocol_whitelist": "file"})
    if protocol in PROTOCOLS:
        options = {"protocol_whitelist": PROTOCOLS[protocol]}
        if protocol.startswith("rtsp"):
            text = stack.enter_context(relayed(text, _name(source), OPEN_S, READ_S))
            options |= {"rtsp_transport": "tcp", "format_whitelist": "rtsp"}
        else:
            options |= {"max_redirects": "0", "format_whitelist": STREAMED}
        return av.open(text, options=options, timeout=(OPEN_S, READ_S))
    if protocol:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise InputError(f"'{protocol}://' is no address of a stream, expected one of {known}")
    video = stack.enter_context(opened(source, "video"))
    return av.open(video, options=whole | {"format_whitelist": formats_of(video, _name(source))})


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike) and os.fspath(source) == STDIN:
        return "the video on stdin"
    if isinstance(source, str) and scheme(source):  # without a user's name and password
        source = re.sub(r"(?<=://)[^/]*@", "", source, count=1)
    return name_of(source, "video") if is_source(source) else "the frames"
