"""A bundle on disk: written whole or not at all, read with suspicion.

Writing goes to the sibling folder `.NAME.partial`, where finished blocks stay if the export is
stopped, even by `kill -9`; the same command goes on from them. The last step is one rename.
Reading checks the manifest strictly, every path, size and shape at opening, and a file's sha256
when it is first asked for; that is remembered in the user's cache by path, size and time.
Needs neither torch nor any engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import cache_folder, keep
from edgevlm.bundle.documents import dumps, read, to_document
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.manifest import read_manifest
from edgevlm.bundle.plan import MANIFEST, FileEntry, Plan
from edgevlm.bundle.writing import check_folder, write_text
from edgevlm.errors import BundleError, EdgeVLMError
from edgevlm.version import VERSION

MEASURED = "measured"
# What an unfinished export needs to go on; none of it is part of a bundle.
STATE = ("done", "plan.json", "lock")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    plan: Plan[Any]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check a bundle.

        Raises:
            BundleError: If anything is not as the manifest says; one line with file and field.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"no bundle at '{path}': expected a folder that `export` wrote")
        return cls(folder, read_manifest(folder))

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, its sha256 checked the first time; of a folder all of them.

        Raises:
            BundleError: If the manifest has no such file or the contents differ.
        """
        entry = self._entries.get(name)
        if entry is None:
            inside = [part for part in self._entries if part.startswith(f"{name}/")]
            if not inside:
                raise BundleError(f"{MANIFEST}: no file '{name}' is listed")
            for part in inside:
                self.file(part)
            return self.path / name
        path, key = self.path / name, f"{self._place}/{name}"
        try:
            state = path.stat()
            # A change that sets the modification time back still moves the inode's own time.
            mark = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, entry.sha256]
            if _CHECKED.get(key) != mark:
                known = _remembered()
                if known.get(key) != mark:
                    if sha256(path) != entry.sha256:
                        raise BundleError(f"'{name}' was changed: its sha256 is not the manifest's")
                    _remember(known | {key: mark})
                _CHECKED[key] = mark
        except OSError as cause:
            raise BundleError(f"'{name}' cannot be read: {cause.strerror}") from cause
        return path

    def files_of(self, block: Block) -> dict[str, Path]:
        """Checked artifact of each function of `block`; the weights beside them are checked too."""
        paths = {f.name: self.file(f.file) for f in block.functions}
        for entry in self.weights_of(block):
            self.file(entry.path)
        return paths

    def weights_of(self, block: Block) -> list[FileEntry]:
        """Files of weights beside the artifacts of `block`."""
        folders = {posixpath.dirname(f.file) for f in block.functions}
        names = (f"{block.name}.weights", "table.bin")
        paths = (posixpath.join(folder, name) for folder in sorted(folders) for name in names)
        return [self._entries[path] for path in paths if path in self._entries]

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.plan.files}

    @cached_property
    def _place(self) -> Path:
        return self.path.resolve()


class BundleWriter:
    """The folder that an export fills; see `writing`."""

    def __init__(self, folder: Path, plan: Plan[Any]) -> None:
        self.folder, self.plan = folder, plan
        self._done = folder / "done"

    def finished(self, block: Block) -> tuple[Function, ...] | None:
        """Functions of a block that an earlier, stopped export finished, or None."""
        record = self._done / f"{block.name}.json"
        if not record.is_file():
            return None
        try:
            functions = json.loads(record.read_text("utf-8"))
            recorded = tuple(read(Function, f, record.name) for f in functions)
        except (ValueError, TypeError):  # cut off by a power failure: do the block again
            return None
        return recorded if len(recorded) == len(block.functions) else None

    def finish(self, block: Block, functions: tuple[Function, ...]) -> None:
        """Record a block as complete; its files are on disk."""
        self._done.mkdir(exist_ok=True)
        write_text(self._done / f"{block.name}.json", json.dumps(to_document(functions)))

    def stage_folder(self, stage: str) -> Path:
        """`blocks/STAGE` inside the bundle, made if need be."""
        folder = self.folder / "blocks" / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put(self, name: str, text: str) -> None:
        """Write a small text file of the bundle."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def close(self, plan: Plan[Any]) -> Plan[Any]:
        """Hash every file, write the manifest, and read it back; returns the manifest.

        Raises:
            BundleError: If the bundle would be refused by those who open it.
        """
        files = []
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if name.split("/")[0] not in (MANIFEST, MEASURED, *STATE):
                files.append(FileEntry(name, path.stat().st_size, sha256(path)))
        manifest = replace(plan, files=tuple(files))
        self.put(MANIFEST, dumps(manifest))
        return read_manifest(self.folder)


@contextmanager
def writing(out: Path, plan: Plan[Any], weights: str, force: bool) -> Iterator[BundleWriter]:
    """A writer whose folder becomes `out` if the body ends well.

    An export that was stopped is continued when the version, its plan and `weights` (a text that
    names the checkpoint's contents) are the same, else begun anew. An error leaves nothing behind;
    if it is stopped from outside, finished blocks stay.

    Raises:
        BundleError: If `out` exists and `force` is not given, is no bundle, or another export
            writes there.
    """
    check_free(out, force)
    partial = out.parent / f".{out.name}.partial"
    with _locked(partial, out):
        try:
            check_free(out, force)  # again: another export may have ended in between
            _begin(partial, f"edgevlm {VERSION}\n{weights}\n{dumps(plan)}")
            yield BundleWriter(partial, plan)
            for name in ("done", "plan.json"):
                path = partial / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            check_free(out, force)
            _replace(partial, out)
        except (EdgeVLMError, OSError) as cause:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(cause, EdgeVLMError):
                raise
            place = f": '{cause.filename}'" if cause.filename else ""
            raise BundleError(
                f"'{out}' was not written: {cause.strerror or cause}{place}"
            ) from cause
        except BaseException:
            if not (partial / "done").exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        # Last, so that no other export can take the folder before it has its name.
        (out / "lock").unlink(missing_ok=True)


def check_free(out: Path, force: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        BundleError: If `out` exists and `force` is not given or `out` is not a bundle.
    """
    check_folder(out, BundleError)
    if not os.path.lexists(out):
        return
    if not force:
        raise BundleError(f"'{out}' exists; choose another output or give --force to replace it")
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise BundleError(f"'{out}' is not a bundle; --force replaces only bundles")


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _begin(partial: Path, text: str) -> None:
    """Keep the finished blocks of an export with the same `text`, or empty the folder."""
    mark = partial / "plan.json"
    if mark.is_file() and mark.read_bytes() == text.encode():
        return
    for path in partial.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    mark.write_bytes(text.encode())


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    if partial.is_symlink():
        raise BundleError(f"'{partial}' is a symbolic link; remove it")
    partial.mkdir(exist_ok=True)
    try:
        import fcntl
    except ImportError:  # on Windows two exports to one place are not told apart
        yield
        return
    path = partial / "lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The other export may have ended, and renamed the folder, since the file was opened.
            mine = os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except OSError as cause:
            raise BundleError(f"another export is writing '{out}'") from cause
        if not mine:
            raise BundleError(f"another export is writing '{out}'")
        yield


def _replace(partial: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.old"
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a run that was killed right here
        out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


# What this process has found to be as the manifest says; blocks are loaded again and again.
_CHECKED: dict[str, list[object]] = {}


def _remembered() -> dict[str, list[object]]:
    try:
        known = json.loads((cache_folder() / "checked.json").read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, list[object]]) -> None:
    keep(cache_folder() / "checked.json", json.dumps(dict(list(known.items())[-4096:])))
