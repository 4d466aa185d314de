"""What a picture or a clip is given as: a path, bytes or an open file; and its name in an error.

Nothing is fetched: an address is refused. Only regular files are opened, as a pipe may never end.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from edgevlm.errors import InputError
from edgevlm.libraries import first_line

Data = bytes | bytearray | memoryview
Source = str | os.PathLike[str] | Data | BinaryIO

STREAM_LIMIT, STREAM_PIECE = 10**9, 2**20  # bytes of a stream that cannot seek; of a read
NAME = 120  # longest name in an error

# Beginnings of files that are not read as pictures: offset, bytes, what it is.
_VIDEO = "is a video; give it as video (--video FILE)"
_BEGINNINGS = (
    (0, b"%PDF", "is a PDF document"),
    (0, b"%!PS", "is PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "is PostScript"),
    (0, b"8BPS", "is a Photoshop document"),
    (0, b"\xff\x0a", "is JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "is JPEG XL"),
    (0, b"v/1\x01", "is OpenEXR"),
    (0, b"#?R", "is Radiance HDR"),
    (0, b"DDS ", "is a DirectDraw surface"),
    (0, b"icns", "is an Apple icon"),
    (0, b"\xd7\xcd\xc6\x9a", "is a Windows metafile"),
    (0, b"FORM", "is an IFF file"),
    (0, b"PK\x03\x04", "is a ZIP archive"),
    (0, b"\x1f\x8b", "is gzip data"),
    (0, b"\x93NUMPY", "is a numpy array; load it and give the array"),
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file; run 'git lfs pull'"),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (8, b"AVI ", _VIDEO),
    (4, b"ftyp", _VIDEO),
    (4, b"moov", _VIDEO),
)
_TEXTS = (("<svg", "is an SVG drawing"), ("<html", "is a web page"), ("<!doctype", "is a web page"))
_HEIC = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)


@contextmanager
def opened(source: Any, what: str) -> Iterator[BinaryIO]:
    """A file that can seek, at its beginning; closed afterwards if it was opened here.

    Args:
        source: A path, the file's bytes, or a binary file.
        what: `image` or `video`, for errors.

    Raises:
        InputError: If there is no such file, or it is not a source.
    """
    if isinstance(source, Data):
        yield io.BytesIO(_plain(source, what))
    elif isinstance(source, str | os.PathLike):
        with _open_path(source, what) as file:
            yield file
    elif _seeks(source, what):
        yield source
    else:
        with tempfile.TemporaryFile() as copied:  # memory is what a budget counts
            _copy(source, copied, what)
            yield copied


def is_source(value: Any) -> bool:
    """Whether a value is a path, bytes, or has `read` as an open file has."""
    return isinstance(value, str | os.PathLike | Data) or callable(getattr(value, "read", None))


def name_of(source: Any, what: str) -> str:
    """How an error names a source, at most a line long."""
    if isinstance(source, str | os.PathLike):
        return _quoted(_spelled(source, what))
    if isinstance(source, Data):
        with _reading(f"the {what}"):
            return f"the {what} of {memoryview(source).nbytes:,} bytes"
    if isinstance(name := getattr(source, "name", None), str | os.PathLike):
        return _quoted(os.fspath(name))
    return f"the {what} ({type(source).__name__})"


def format_of(file: BinaryIO) -> str | None:
    """What a file is that is not read as a picture, as the end of a sentence; None if unknown."""
    file.seek(0)
    head = file.read(1024)
    if not head:
        return "is empty"
    for offset, begin, meaning in _BEGINNINGS:
        if head[offset : offset + len(begin)] == begin:
            return meaning
    text = head.decode("latin-1").lower()
    return next((meaning for mark, meaning in _TEXTS if mark in text), None)


def is_heic(file: BinaryIO) -> bool:
    """Whether a file says that it is HEIC or HEIF."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC


def _open_path(path: str | os.PathLike[str], what: str) -> BinaryIO:
    name, text = name_of(path, what), _spelled(path, what)
    if isinstance(text, str) and text.lower().startswith(("http://", "https://", "data:", "s3://")):
        raise InputError(f"{name} is an address; fetch it, and give a path or the bytes")
    try:
        mode = os.stat(text).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name} is a folder, expected {_article(what)}")
        if not stat.S_ISREG(mode):
            raise InputError(f"{name} is not a regular file; save the {what} to a file first")
        return open(text, "rb")  # the caller closes it
    except FileNotFoundError as cause:
        raise InputError(f"no {what} at {name}") from cause
    except OSError as cause:
        raise InputError(f"{name} cannot be opened: {cause.strerror}") from cause
    except ValueError as cause:  # a zero byte or half a character in the name
        raise InputError(f"{name} is not the name of a file") from cause


def _seeks(file: Any, what: str) -> bool:
    """Whether a binary file can seek; then it is at its beginning."""
    name = name_of(file, what)
    if not callable(getattr(file, "read", None)):
        raise InputError(f"expected {_article(what)}, got {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise InputError(f"{name} is open as text; open it with mode 'rb'")
    with _reading(name):
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
            return True
    return False


def _copy(stream: Any, copied: BinaryIO, what: str) -> None:
    """Copy what cannot seek, a piece at a time."""
    name, total = name_of(stream, what), 0
    while True:
        with _reading(name):
            piece = stream.read(STREAM_PIECE)
        total += len(piece) if isinstance(piece, bytes) else 0
        if not isinstance(piece, bytes) or total > STREAM_LIMIT:
            raise InputError(f"{name} is not a stream of at most {STREAM_LIMIT:,} bytes")
        if not piece:
            break
        copied.write(piece)
    copied.seek(0)


def _plain(data: Data, what: str) -> Data:
    """The bytes of a view in one piece: a copy only where it is in several."""
    with _reading(name_of(data, what)):
        return data if memoryview(data).c_contiguous else memoryview(data).tobytes()


def _spelled(path: str | os.PathLike[str], what: str) -> str:
    """The text of a path.

    Raises:
        InputError: If an object that says it is a path has none.
    """
    with _reading(f"the path of the {what}"):
        return os.fspath(path)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what a caller's object raises, which is anything, into one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as cause:
        raise InputError(f"{name} cannot be read: {first_line(cause)}") from cause


def _article(what: str) -> str:
    return f"an {what}" if what == "image" else f"a {what}"


def _quoted(name: str | bytes) -> str:
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return f"'{text}'" if len(text) <= NAME else f"'{text[: NAME // 2]}…{text[-NAME // 2 :]}'"
