"""Every file that is written beside an export: under a fresh name first, then renamed.

    1. The file gets a new random name in its folder; nothing that is there is opened.
    2. Its bytes reach the disk (fsync), then it takes its name in one step.
    3. Inside a folder of ours, a bundle or the cache, no symbolic link is followed on the way: a
       bundle comes from others, and its links may point anywhere.

So a file is there completely or not at all, after a power failure too.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from edgevlm.errors import EdgeVLMError, InputError

# Names of open files and devices, which are written directly: `-o /dev/stdout`.
_DEVICES = ("/dev", "/dev/fd", "/proc/self/fd")


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for a text, in UTF-8 with its line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that the user named; replaces a file, or a link, of this name.

    Raises:
        InputError: If it cannot be written; one line.
    """
    try:
        if _is_device(path):
            with path.open("wb") as file:
                file.write(data)
        else:
            _replace(path, data)
    except OSError as cause:
        raise InputError(f"'{path}' cannot be written: {cause.strerror}") from cause


def write_inside(folder: Path, name: str, text: str) -> Path:
    """Write a text into a bundle or the cache, with the folders on the way; returns its path.

    Args:
        folder: The bundle or the cache, which exists.
        name: Path inside it, with `/`.
        text: The contents.

    Raises:
        InputError: If a symbolic link is on the way, or it cannot be written; one line.
    """
    path = folder / PurePath(name)
    try:
        make_inside(folder, PurePath(name).parent.parts)
        _replace(path, text.encode("utf-8"))
    except OSError as cause:
        raise InputError(f"'{path}' cannot be written: {cause.strerror}") from cause
    return path


def make_inside(folder: Path, parts: Iterable[str]) -> Path:
    """The folder `parts` inside a bundle or the cache, made if necessary; no link is followed.

    Raises:
        InputError: If a part is a symbolic link, or leaves the folder.
        OSError: If it cannot be made.
    """
    for part in parts:
        folder = folder / part
        if part == ".." or folder.is_symlink():
            raise InputError(f"'{folder}' is a symbolic link, and nothing is written behind one")
        with suppress(FileExistsError):
            folder.mkdir()
    return folder


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the system can."""
    with suppress(OSError):  # Windows opens no folder, and some file systems sync none
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_folder(path: Path, kind: type[EdgeVLMError] = InputError) -> None:
    """Check that the folder of a path exists, before minutes of work.

    Raises:
        EdgeVLMError: One of `kind`.
    """
    if not path.parent.is_dir():
        raise kind(
            f"'{path}' cannot be written: the folder '{path.parent}' does not exist; create it"
        )


def check_file(path: Path) -> None:
    """Check that a file can be written, before minutes of work.

    Raises:
        InputError: If its folder does not exist, or the path is a folder.
    """
    check_folder(path)
    if path.is_dir():
        raise InputError(f"'{path}' cannot be written: it is a folder; give a file name")


def _replace(path: Path, data: bytes) -> None:
    """The one place that writes: a fresh name, fsync, rename, fsync of the folder."""
    fresh = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    kind = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(fresh, kind | getattr(os, "O_BINARY", 0), 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _is_device(path: Path) -> bool:
    """Whether a name is an open file, a device or a pipe, which nothing may replace."""
    if os.path.dirname(os.path.abspath(path)) in _DEVICES:
        return True
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode))
