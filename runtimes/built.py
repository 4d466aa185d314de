"""What engines build once on a machine, in the cache folder: packed or compiled blocks.

    CACHE/KIND/DIGEST/made…         what was built
    CACHE/KIND/DIGEST/record.json   size and sha256 of each of its files, and the time that it took

Nothing is believed because it is there. A size is compared at each use, the sha256 at the first use
after a start of the machine and after each change of a file; what is missing, cut or damaged is
built again. A process holds what it uses with a shared lock, so that nothing is removed meanwhile.

The cache has a limit: after each build, what was not used for longest is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import (
    alone,
    cache_folder,
    made_cache_folder,
    open_lock,
    remember,
    sha256,
    take_lock,
    was_checked,
)
from edgevlm.bundle.plan import MANIFEST
from edgevlm.bundle.writing import make_inside, sync, write_inside
from edgevlm.errors import RecipeError
from edgevlm.units import parse_bytes

LIMIT, LIMIT_VARIABLE = "10GB", "EDGEVLM_CACHE_LIMIT"
RECORD, WORK, BUNDLE = "record.json", ".work-", ".edgevlm"
# Folders with rules of their own: small files of measurements, and what `profile --device ssh:` of
# another machine put here.
OTHERS = ("measured", "remote")
# A bundle that was opened in this time may be in use: only what was built is held by a lock.
RECENT_S = 86_400


@dataclass(frozen=True)
class Entry:
    """Something of the cache that may be removed; `used` is the time of its last use."""

    path: Path
    bytes: int
    used: float


def build_once(kind: str, contents: str, make: Callable[[Path], Path], end: str = "") -> Path:
    """The folder of the cache for `contents`: built at first use, and again if it is damaged.

    An interrupted build leaves nothing that is read; of two parallel builds one waits.

    Args:
        kind: Name of the folder inside the cache folder.
        contents: Text that identifies the folder's contents; another text is another folder.
        make: Builds it inside a given work folder, and returns its path.
        end: Suffix of its name.

    Raises:
        InputError: If a link is on the way to the folder.
        OSError: If the cache folder cannot be written.
    """
    folder = _entry(kind, contents)
    if not _is_sound(folder):
        make_inside(made_cache_folder(), (kind,))
        with alone(kind):
            if not _is_sound(folder):  # another process may have built it in between
                _build(folder, make, end)
                shrink(limit_bytes())
    return folder / f"made{end}"


def is_built(kind: str, contents: str) -> bool:
    """Whether `build_once` has nothing to do."""
    return _is_sound(_entry(kind, contents))


def build_ms(made: Path) -> float | None:
    """Milliseconds that `build_once` took for a folder on this machine; None if unknown."""
    try:
        return float(_record(made.parent)["ms"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def discard(made: Path) -> None:
    """Remove what `build_once` returned, as it cannot be used; the next use builds it again."""
    _release(made.parent)
    shutil.rmtree(made.parent, ignore_errors=True)


def entries() -> list[Entry]:
    """Everything that may be removed, last used first: what was built, and bundles."""
    root, paths = cache_folder(), list[Path]()
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and path.name not in OTHERS:
            paths += [path] if path.name.endswith(BUNDLE) else sorted(path.iterdir())
    known = [Entry(path, _bytes(path), _used(path)) for path in paths]
    return sorted(known, key=lambda entry: -entry.used)


def limit_bytes() -> int:
    """Most bytes of all entries together, apart from those in use.

    Raises:
        RecipeError: If EDGEVLM_CACHE_LIMIT is not a size.
    """
    try:
        return parse_bytes(os.environ.get(LIMIT_VARIABLE) or LIMIT)
    except RecipeError as cause:
        raise RecipeError(f"{LIMIT_VARIABLE}: {cause}") from cause


def shrink(most_bytes: int) -> None:
    """Remove what was not used for longest, until all entries together have at most so many bytes.

    A bundle in recent use, and what a process uses now, stays.
    """
    total = 0
    for entry in entries():
        bundle = entry.path.name.endswith(BUNDLE)
        total += entry.bytes
        recent = bundle and time.time() - entry.used < RECENT_S
        if total > most_bytes and not recent and remove(entry):
            total -= entry.bytes


def remove(entry: Entry) -> bool:
    """Remove an entry; false if a process uses it, or it cannot be removed."""
    lock = None
    with suppress(OSError):
        lock = open_lock(entry.path / RECORD)
    try:
        if lock is not None and not take_lock(lock):
            return False
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.path.unlink()
    finally:
        if lock is not None:
            os.close(lock)
    return not os.path.lexists(entry.path)


def _entry(kind: str, contents: str) -> Path:
    return cache_folder() / kind / hashlib.sha256(contents.encode()).hexdigest()[:32]


def _build(folder: Path, make: Callable[[Path], Path], end: str) -> None:
    """Build an entry beside its place, wait until it is on the disk, and put it there."""
    for stale in folder.parent.glob(f"{WORK}*"):  # of builds that were killed: this one is alone
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=WORK, dir=folder.parent))
    try:
        started = time.perf_counter()
        built, made = make(work), work / f"made{end}"
        took_ms = round((time.perf_counter() - started) * 1e3, 3)
        if built != made:
            built.rename(made)
        digests = {}
        for path in sorted(path for path in made.rglob("*") if path.is_file()):
            sync(path)
            digests[path.relative_to(work).as_posix()] = sha256(path)
        files = {name: [(work / name).stat().st_size, digests[name]] for name in digests}
        write_inside(work, RECORD, json.dumps({"ms": took_ms, "files": files}))
        _release(folder)
        if os.path.lexists(folder) and not remove(Entry(folder, 0, 0.0)):
            shutil.rmtree(folder)  # damaged, though a process holds it: that one has its files open
        work.rename(folder)
        sync(folder.parent)
        remember({str(folder / n): _mark(folder / n, digest) for n, digest in digests.items()})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _hold(folder)


def _is_sound(folder: Path) -> bool:
    """Whether an entry is complete and unchanged; it is then held until this process ends."""
    if not _hold(folder):
        return False
    try:
        marks = {}
        for name, (size, digest) in _record(folder)["files"].items():
            path = folder / name
            mark = _mark(path, digest)
            if path.is_symlink() or mark[0] != size:
                return False
            if not was_checked(str(path), mark):
                if sha256(path) != digest:
                    return False
                marks[str(path)] = mark
        if marks:
            remember(marks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    return record


def _mark(path: Path, digest: str) -> list[object]:
    """What changes with a file's contents, and with each start of the machine."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, digest, _boot()]


@cache
def _boot() -> str:
    """Text of this start of the machine: a power cut leaves sizes and times, not all contents."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return str(round((time.time() - time.monotonic()) / 600))  # to ten minutes: clocks drift


# Records that this process has open, with a shared lock, by entry.
_HELD: dict[Path, int] = {}


def _hold(folder: Path) -> bool:
    """Keep an entry from being removed by others until this process ends; false if it is none."""
    record = folder / RECORD
    try:
        if folder in _HELD and os.path.samestat(os.fstat(_HELD[folder]), record.stat()):
            return True
        _release(folder)
        lock = open_lock(record)
    except OSError:
        return False
    take_lock(lock, wait=True, shared=True)  # who removes it is done in a moment
    _HELD[folder] = lock
    with suppress(OSError):
        os.utime(record)  # its last use
    return True


def _release(folder: Path) -> None:
    if (lock := _HELD.pop(folder, None)) is not None:
        os.close(lock)


def _used(path: Path) -> float:
    """Time of the last use: a record is touched at each, a manifest read, other files neither."""
    for name in (RECORD, MANIFEST, "."):
        with suppress(OSError):
            state = os.stat(path / name)
            return max(state.st_mtime, state.st_atime if name == MANIFEST else 0.0)
    return 0.0


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; a file of several names counts once."""
    states = [path.lstat()]
    for root, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):  # removed meanwhile
                states.append(os.lstat(os.path.join(root, name)))
    sizes = {(s.st_dev, s.st_ino): s.st_size for s in states if stat.S_ISREG(s.st_mode)}
    return sum(sizes.values())
