"""A bundle on disk: written completely or not at all, read as untrusted input.

An export writes to the sibling folder `.NAME.partial`. Finished blocks stay there if the export is
stopped, even by `kill -9`; the same command continues from them. The last step is one rename.
Reading checks the manifest strictly, with every path, size and shape, at opening, and the sha256 of
a file at its first use; the result is cached for the user by path, size and time. Needs neither
torch nor any engine.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import remember, sha256, was_checked
from edgevlm.bundle.documents import dumps, read, to_document
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.manifest import read_manifest
from edgevlm.bundle.plan import MANIFEST, FileEntry, Plan
from edgevlm.bundle.writing import check_folder, make_inside, sync, write_inside
from edgevlm.errors import BundleError, EdgeVLMError
from edgevlm.version import VERSION

MEASURED = "measured"
# Files that an unfinished export continues from; none is part of a bundle.
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
            BundleError: If anything differs from the manifest; one line with file and field.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(
                f"no bundle at '{path}': expected a folder written by `edgevlm export`"
            )
        return cls(folder, read_manifest(folder))

    def file(self, name: str) -> Path:
        """Path of a file or folder of the bundle; its sha256 is checked at first use.

        Raises:
            BundleError: If the manifest does not list it, or its contents differ.
        """
        entry = self._entries.get(name)
        if entry is None:
            inside = [part for part in self._entries if part.startswith(f"{name}/")]
            if not inside:
                raise BundleError(f"{MANIFEST} does not list '{name}'")
            for part in inside:
                self.file(part)
            return self.path / name
        path, key = self.path / name, f"{self._resolved}/{name}"
        try:
            state = path.stat()
            # A change that resets the modification time still moves the inode's change time.
            mark = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, entry.sha256]
            if not was_checked(key, mark):
                if sha256(path) != entry.sha256:
                    raise BundleError(
                        f"'{name}' was changed: its sha256 is not the manifest's; export again"
                    )
                remember({key: mark})
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
    def _resolved(self) -> Path:
        return self.path.resolve()


class BundleWriter:
    """The folder of an export in progress; see `writing`."""

    def __init__(self, folder: Path, plan: Plan[Any]) -> None:
        self.folder, self.plan = folder, plan

    def finished(self, block: Block) -> tuple[Function, ...] | None:
        """Functions of a block that an earlier, stopped export finished, or None."""
        record = self.folder / "done" / f"{block.name}.json"
        if not record.is_file():
            return None
        try:
            functions = json.loads(record.read_text("utf-8"))
            recorded = tuple(read(Function, f, record.name) for f in functions)
        except (ValueError, TypeError):  # truncated by a power failure: export the block again
            return None
        return recorded if len(recorded) == len(block.functions) else None

    def finish(self, block: Block, functions: tuple[Function, ...]) -> None:
        """Record a block as complete; its files are on disk."""
        stage = self.folder / "blocks" / block.stage
        for path in stage.rglob("*"):  # the record says that these are on the disk
            if path.relative_to(stage).parts[0].startswith((f"{block.name}.", "table.")):
                sync(path)
        text = json.dumps(to_document(functions))
        write_inside(self.folder, f"done/{block.name}.json", text)

    def stage_folder(self, stage: str) -> Path:
        """`blocks/STAGE` inside the bundle, created if necessary."""
        return make_inside(self.folder, ("blocks", stage))

    def put(self, name: str, text: str) -> None:
        """Write a small text file of the bundle."""
        write_inside(self.folder, name, text)

    def close(self, plan: Plan[Any]) -> Plan[Any]:
        """Hash every file, write the manifest, and read it back; returns the manifest.

        Raises:
            BundleError: If the bundle could not be opened again.
        """
        files = []
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if name.split("/")[0] not in (MANIFEST, MEASURED, *STATE):
                files.append(FileEntry(name, path.stat().st_size, sha256(path)))
                sync(path)
        manifest = replace(plan, files=tuple(files))
        self.put(MANIFEST, dumps(manifest))
        return read_manifest(self.folder)


def is_sound(path: Path) -> bool:
    """Whether a bundle is there, opens, and has all its files unchanged."""
    try:
        bundle = Bundle.open(path)
        for entry in bundle.plan.files:
            bundle.file(entry.path)
    except BundleError:
        return False
    return True


@contextmanager
def writing(out: Path, plan: Plan[Any], weights: str, force: bool) -> Iterator[BundleWriter]:
    """A writer whose folder becomes `out` if the body ends without an error.

    A stopped export is continued if the version, the plan and `weights` (a text that identifies the
    checkpoint's contents) are the same, else started again. An error leaves nothing behind; after
    an interrupt, finished blocks stay.

    Raises:
        BundleError: If `out` exists and `force` is not given, `out` is not a bundle, or another
            export writes it.
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
    """Check that `out` is free or may be replaced.

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


def _begin(partial: Path, text: str) -> None:
    """Keep the finished blocks of an export with the same `text`, or empty the folder."""
    record = partial / "plan.json"
    if not _is_foreign(partial) and record.is_file() and record.read_bytes() == text.encode():
        return
    for path in partial.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_inside(partial, record.name, text)


def _is_foreign(folder: Path) -> bool:
    """Whether something here is no export's: a link, which writing would follow, or a pipe."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            state = os.lstat(os.path.join(root, name))
            linked = name in files and state.st_nlink > 1
            if linked or not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
                return True
    return False


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    try:
        if partial.is_symlink():
            raise BundleError(f"'{partial}' is a symbolic link; remove it")
        partial.mkdir(exist_ok=True)
    except OSError as cause:
        raise BundleError(
            f"'{partial}' cannot be made: {cause.strerror}; choose another output"
        ) from cause
    try:
        import fcntl
    except ImportError:  # on Windows two exports to one folder are not detected
        yield
        return
    path = partial / "lock"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BundleError(f"'{path}' is not the lock of an export; remove it")
    with path.open("a") as lock:
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
        shutil.rmtree(old, ignore_errors=True)  # of an export that was killed at this point
        out.rename(old)
    try:
        partial.rename(out)
        sync(out.parent)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
