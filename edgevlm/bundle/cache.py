"""The user's cache folder: files that are slow to build and may be removed at any time."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgevlm.bundle.writing import write_inside
from edgevlm.errors import InputError


def cache_folder() -> Path:
    """The user's cache folder for edgevlm (`XDG_CACHE_HOME` or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgevlm"


def keep(path: Path, text: str) -> None:
    """Write a file of the cache, completely or not at all; a failure only costs time later."""
    root = cache_folder()
    with suppress(OSError, InputError):
        root.mkdir(parents=True, exist_ok=True)
        write_inside(root, path.relative_to(root).as_posix(), text)


def build_once(kind: str, contents: str, make: Callable[[Path], Path], end: str = "") -> Path:
    """The folder of the cache for `contents`, built at first use.

    An interrupted build leaves nothing; of two parallel builds the slower one uses the other's.

    Args:
        kind: Name of the folder inside the cache folder.
        contents: Text that identifies the folder's contents; another text is another folder.
        make: Builds it inside a given work folder, and returns its path.
        end: Suffix of its name.

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
    """Milliseconds that `build_once` took for a folder on this machine; None if unknown."""
    try:
        return float(done.with_suffix(".ms").read_text("utf-8"))
    except (OSError, ValueError):
        return None
