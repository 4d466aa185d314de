"""The user's cache folder: what is slow to make and may be removed at any time."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgevlm.bundle.writing import write_text
from edgevlm.errors import InputError


def cache_folder() -> Path:
    """The user's cache folder for edgevlm (`XDG_CACHE_HOME` or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgevlm"


def keep(path: Path, text: str) -> None:
    """Write a file of the cache, whole or not at all; without it there is more to do next time."""
    with suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def build_once(kind: str, contents: str, make: Callable[[Path], Path], end: str = "") -> Path:
    """A folder of the cache that stands for `contents`, made if it is not there yet.

    Whoever is stopped while it is made leaves none; who is slower than another takes the other's.

    Args:
        kind: Folder of the cache folder.
        contents: What the folder is made from; another text is another folder.
        make: Makes it inside the folder that it is given, and returns it.
        end: Of its name.

    Raises:
        OSError: If the cache folder cannot be written.
    """
    digest = hashlib.sha256(contents.encode()).hexdigest()[:32]
    done = cache_folder() / kind / f"{digest}{end}"
    if not done.is_dir():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.parent) as work:
            started = time.perf_counter()
            built = make(Path(work))
            keep(done.with_suffix(".ms"), f"{(time.perf_counter() - started) * 1e3:.3f}")
            if not done.is_dir():
                os.rename(built, done)
    return done


def build_ms(done: Path) -> float | None:
    """What it took to make a folder of `made_once` on this machine; None if that is not known."""
    try:
        return float(done.with_suffix(".ms").read_text("utf-8"))
    except (OSError, ValueError):
        return None
