"""The user's cache folder: files that are slow to make and may be removed at any time.

    CACHE/NAME.lock      held by a process while it makes something; others wait (`alone`)
    CACHE/checked.json   files whose sha256 was right, with what changes when they change

`edgevlm.runtimes.built` has what engines build there.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgevlm.bundle.writing import write_inside
from edgevlm.errors import InputError

_MOST_CHECKED = 4096


def cache_folder() -> Path:
    """The user's cache folder for edgevlm: in `XDG_CACHE_HOME`, in ~/.cache, or a temporary one.

    Raises:
        InputError: If there is no home folder, and the temporary one is somebody else's.
    """
    named, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    if os.path.isabs(named):  # the specification ignores another one
        return Path(named) / "edgevlm"
    if os.path.isabs(home):
        return Path(home) / ".cache" / "edgevlm"
    return _homeless_folder()


def made_cache_folder() -> Path:
    """`cache_folder`, made if it is not there.

    Raises:
        OSError: If it cannot be made.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    return root


def keep(name: str, text: str) -> None:
    """Write a file of the cache, completely or not at all; a failure only costs time later."""
    with suppress(OSError, InputError):
        write_inside(made_cache_folder(), name, text)


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def was_checked(path: str, mark: list[object]) -> bool:
    """Whether `remember` was called for this path and mark, by this process or an earlier one."""
    if _CHECKED.get(path) != mark:
        if _remembered().get(path) != mark:
            return False
        _CHECKED[path] = mark
    return True


def remember(marks: dict[str, list[object]]) -> None:
    """Remember checked files: by path, what changes with the file's contents."""
    _CHECKED.update(marks)
    known = list((_remembered() | marks).items())
    keep("checked.json", json.dumps(dict(known[-_MOST_CHECKED:])))


@contextmanager
def alone(name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Of all processes, one at a time is inside for a `name`; another one says so and waits.

    Where the system or the folder has no locks, none waits.
    """
    lock = None
    with suppress(OSError, InputError):
        lock = open_lock(made_cache_folder() / f"{name}.lock", os.O_CREAT)
    try:
        if lock is not None and not take_lock(lock):
            waiting()
            take_lock(lock, wait=True)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def open_lock(path: Path, further: int = 0) -> int:
    """A file to lock, which is never followed as a link; closing it frees the lock."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, os.O_RDWR | safe | further, 0o600)


def take_lock(lock: int, wait: bool = False, shared: bool = False) -> bool:
    """Lock an opened file; false if another process has it. True where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(lock, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _homeless_folder() -> Path:
    """A folder for a user without a home, as in containers; it must be this user's own."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"edgevlm-{user}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if stat.S_ISDIR(state.st_mode) and state.st_uid == user and not state.st_mode & 0o022:
            return folder
    raise InputError(
        f"there is no cache folder: this user has no home folder, and '{folder}' cannot be used;"
        " set XDG_CACHE_HOME to a folder"
    )


# Files that this process has checked, as blocks are loaded repeatedly.
_CHECKED: dict[str, list[object]] = {}


def _remembered() -> dict[str, list[object]]:
    try:
        known = json.loads((cache_folder() / "checked.json").read_text("utf-8"))
    except (OSError, ValueError, InputError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
