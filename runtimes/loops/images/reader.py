"""A video file: its container, its stream of moving pictures, and a frame of it as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.libraries import first_line
from edgevlm.runtimes.containers import formats_of
from edgevlm.runtimes.loops.images import hdr
from edgevlm.runtimes.loops.images.eight_bit import STRIP_PIXELS
from edgevlm.runtimes.loops.images.room import Room, check_size

# Bytes of a pixel as decoders keep it (4:2:0, 8 bits), and as RGB with its copy in strips; a
# resize is on top. A decoder holds several frames: 4 to 11 of 1.5 bytes were measured. With more
# than 8 bits all are twice as many.
FRAME_BYTES, RGB_FRAME_BYTES = 1.5, 7.5
FIRST_FRAMES, NEXT_FRAMES = 5, 3

DEFAULT_RATE = 25  # frames a second where a container says nothing
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


class _Cursor:
    """A place of its own in a file that several read."""

    def __init__(self, file: Any) -> None:
        self._file, self._position = file, 0

    def read(self, size: int) -> bytes:
        self._file.seek(self._position)
        data: bytes = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 1:
            offset, whence = self._position + offset, 0
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position


@dataclass(frozen=True)
class Reader:
    """Opens a video as often as necessary.

    Attributes:
        av: PyAV.
        file: A binary file that can seek.
        name: Of the file, for errors.
        room: Memory that decoding may take.
    """

    av: Any
    file: Any
    name: str
    room: Room
    _turned: list[tuple[float, ...]] = field(default_factory=list, compare=False)
    _formats: list[str] = field(default_factory=list, compare=False)

    def open(self) -> Any:
        """The container, at its beginning; several may be open at a time.

        Raises:
            InputError: If tables of the file claim what it cannot hold.
        """
        if not self._formats:
            self._formats.append(formats_of(self.file, self.name))
        options = _OPTIONS | {"format_whitelist": self._formats[0]}
        return self.av.open(_Cursor(self.file), options=options)

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
        size = FRAME_BYTES * stream.width * stream.height * _depth(stream.format)
        self.room.claim(FIRST_FRAMES * size, self.name, "takes at least")
        for frame in container.decode(stream):
            check_size((frame.width, frame.height), self.name, "has frames of")
            yield frame
            size = FRAME_BYTES * frame.width * frame.height * _depth(frame.format)
            del frame
            self.room.claim(NEXT_FRAMES * size, self.name, "takes at least")

    def picture(self, frame: Any) -> Image.Image:
        """A frame as RGB, turned as the container says."""
        if not self._turned:  # of all frames, as the first one says
            self._turned.append(display_matrix(frame))
        matrix, pixels = self._turned[0], frame.width * frame.height
        turn = 4 * pixels if matrix != STRAIGHT else 0
        self.room.claim(
            RGB_FRAME_BYTES * pixels * _depth(frame.format) + turn, self.name, "takes at least"
        )
        return shown(frame, matrix)


def reason_of(cause: Exception) -> str:
    """What went wrong in FFmpeg, without the name and the number that PyAV adds."""
    return getattr(cause, "strerror", None) or first_line(cause)


def rate_of(stream: Any) -> float:
    """Frames a second, as the container says or guesses."""
    return float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)


def shown(frame: Any, matrix: tuple[float, ...]) -> Image.Image:
    """A frame as 8-bit RGB, turned by a display matrix."""
    high = hdr.is_hdr(frame)
    array = frame.to_ndarray(format="rgb48le" if high else "rgb24")
    picture = Image.new("RGB", (frame.width, frame.height))
    rows = max(1, STRIP_PIXELS // frame.width)
    for top in range(0, frame.height, rows):
        strip = array[top : top + rows]
        if high:
            strip = hdr.to_srgb(strip, int(frame.color_trc), int(frame.color_primaries))
        picture.paste(Image.fromarray(strip), (0, top))
    del array
    return _upright(picture, matrix)


def _depth(format_: Any) -> int:
    """Bytes of a sample: 2 of more than 8 bits; 1 if the format is not known yet."""
    return 2 if format_ is not None and max(c.bits for c in format_.components) > 8 else 1


def display_matrix(frame: Any) -> tuple[float, ...]:
    """The display matrix a, b, c, d of a frame; of no turn without one.

    A frame whose side data were read is freed when Python looks for cycles, not before.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # of PyAV, where a frame has side data of a type that it does not know
        turn = math.radians(frame.rotation)
        return (math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn))
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
