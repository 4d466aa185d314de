"""A video as a file or as a folder of pictures: complete, or not there at all.

.mp4, .webm       H.264 and VP9 by PyAV
.gif, .webp       by Pillow
no ending         a folder of frame-0000.png and so on
"""

from __future__ import annotations

import io
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.bundle.writing import write_bytes
from edgevlm.errors import InputError
from edgevlm.libraries import first_line, require
from edgevlm.runtimes.arrays import Array

CODECS = {".mp4": ("libx264", "mpeg4"), ".webm": ("libvpx-vp9",)}
PICTURES = {".gif": {"loop": 0}, ".webp": {"loop": 0, "lossless": True}}
ENDINGS = (*CODECS, *PICTURES)


def check_output(path: Path, force: bool) -> None:
    """Refuse, before anything is computed, a place where no video can be written.

    Raises:
        InputError: If the ending is of no format, the folder is missing, or something is there.
    """
    ending = path.suffix.lower()
    if ending and ending not in ENDINGS:
        raise InputError(
            f"'{path}': a video ends in {', '.join(ENDINGS)}, or a folder of frames has no ending"
        )
    if ending in CODECS:
        require("writing a video", "PyAV", "av", "video", InputError)
    if not path.name or not path.parent.is_dir():
        raise InputError(f"'{path.parent}' is no folder; make it first")
    if path.is_dir() and ending:
        raise InputError(f"'{path}' is a folder; give the name of a file")
    if not os.path.lexists(path):
        return
    if not force:
        raise InputError(f"'{path}' exists; choose another output or give --force to replace it")
    if path.is_dir() and any(not _is_frame(each) for each in path.iterdir()):
        raise InputError(f"'{path}' holds more than frames; --force replaces frames alone")


def write_video(path: Path, frames: Array, fps: float) -> None:
    """Write frames u8 [F, h_px, w_px, 3]; what was there is replaced at the end.

    Raises:
        InputError: If it cannot be written.
    """
    ending = path.suffix.lower()
    if not ending:
        _write_frames(path, frames)
        return
    data = io.BytesIO()
    if ending in CODECS:
        _encode(data, path, frames, fps)
    else:
        first, *others = (Image.fromarray(frame) for frame in frames)
        first.save(data, ending[1:], save_all=True, append_images=others,
                   duration=round(1000 / fps), **PICTURES[ending])  # fmt: skip
    write_bytes(path, data.getvalue())


def _write_frames(path: Path, frames: Array) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(partial / f"frame-{index:04}.png")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(partial, path)
    except OSError as cause:
        raise InputError(f"'{path}' cannot be written: {first_line(cause)}") from cause
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)


def _encode(data: io.BytesIO, path: Path, frames: Array, fps: float) -> None:
    ending = path.suffix.lower()
    av: Any = require("writing a video", "PyAV", "av", "video", InputError)
    name = next((n for n in CODECS[ending] if n in av.codecs_available), None)
    if name is None:
        known = " nor ".join(CODECS[ending])
        raise InputError(f"this PyAV has no {known}; write .gif or a folder of frames")
    _, height, width, _ = frames.shape
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    try:
        with av.open(data, "w", format=ending[1:]) as container:
            stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = even.shape[1:3]
            stream.pix_fmt = "yuv420p"
            if name != "mpeg4":
                stream.options = {"crf": "18"}
            for frame in even:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except av.error.FFmpegError as cause:
        raise InputError(f"'{path}' cannot be written: {first_line(cause)}") from cause


def _is_frame(path: Path) -> bool:
    return path.is_file() and re.fullmatch(r"frame-\d{4,}\.png", path.name) is not None
