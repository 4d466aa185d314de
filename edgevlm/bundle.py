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
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgevlm.documents import DocumentError, dumps, read, to_document
from edgevlm.errors import BundleError, EdgeVLMError
from edgevlm.plan import FORMAT_VERSION, Block, FileEntry, Function, Plan

MANIFEST = "manifest.json"
MEASURED = "measured"
# What an unfinished export needs to go on; none of it is part of a bundle.
STATE = ("done", "plan.json", "lock")
MANIFEST_LIMIT_BYTES = 32 * 10**6
# No tensor of a function is larger: 2^31 elements are 8 GB of float32.
TENSOR_LIMIT = 2**31


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    plan: Plan

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check a bundle.

        Raises:
            BundleError: If anything is not as the manifest says; one line with file and field.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"no bundle at '{path}': expected a folder that `export` wrote")
        plan = _read_manifest(folder)
        _check_files(folder, plan)
        _check_functions(plan)
        return cls(folder, plan)

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, its sha256 checked the first time.

        Raises:
            BundleError: If the manifest has no such file or the contents differ.
        """
        entry = next((f for f in self.plan.files if f.path == name), None)
        if entry is None:
            raise BundleError(f"{MANIFEST}: no file '{name}' is listed")
        path = self.path / entry.path
        state = path.stat()
        known = _remembered()
        key, mark = str(path.resolve()), [state.st_size, state.st_mtime_ns, entry.sha256]
        if known.get(key) != mark:
            if sha256(path) != entry.sha256:
                raise BundleError(f"'{name}' was changed: its sha256 is not the manifest's")
            _remember(known | {key: mark})
        return path

    def files_of(self, block: Block) -> dict[str, Path]:
        """Checked artifact of each function of `block`; the weights beside them are checked too."""
        paths = {f.name: self.file(f.file) for f in block.functions}
        for entry in self.plan.files:
            folders = {PurePosixPath(f.file).parent for f in block.functions}
            weights = PurePosixPath(entry.path)
            mine = weights.name in (f"{block.name}.weights", "table.bin")
            if mine and weights.parent in folders:
                self.file(entry.path)
        return paths


class BundleWriter:
    """The folder that an export fills; see `writing`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._done = folder / "done"

    def finished(self, block: Block) -> tuple[Function, ...] | None:
        """Functions of a block that an earlier, stopped export finished, or None."""
        record = self._done / f"{block.name}.json"
        if not record.is_file():
            return None
        functions = json.loads(record.read_text())
        return tuple(read(Function, f, str(record)) for f in functions)

    def finish(self, block: Block, functions: tuple[Function, ...]) -> None:
        """Record a block as complete; its files are on disk."""
        self._done.mkdir(exist_ok=True)
        temporary = self._done / f"{block.name}.tmp"
        temporary.write_text(json.dumps(to_document(functions)))
        temporary.rename(self._done / f"{block.name}.json")

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

    def close(self, plan: Plan) -> Plan:
        """Hash every file and write the manifest; returns the manifest."""
        files = []
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if name.split("/")[0] not in (MANIFEST, MEASURED, *STATE):
                files.append(FileEntry(name, path.stat().st_size, sha256(path)))
        manifest = replace(plan, files=tuple(files))
        (self.folder / MANIFEST).write_text(dumps(manifest))
        return manifest


@contextmanager
def writing(out: Path, plan: Plan, weights: str, force: bool) -> Iterator[BundleWriter]:
    """A writer whose folder becomes `out` if the body ends well.

    An export that was stopped is continued when its plan and `weights` (a text that names the
    checkpoint's contents) are the same, else begun anew. If the body fails, nothing stays behind;
    if it is stopped from outside, finished blocks do.

    Raises:
        BundleError: If `out` exists and `force` is not given, is no bundle, or another export
            writes there.
    """
    check_free(out, force)
    partial = out.parent / f".{out.name}.partial"
    with _locked(partial, out):
        text = f"{weights}\n{dumps(plan)}"
        mark = partial / "plan.json"
        if not mark.is_file() or mark.read_text() != text:
            _empty(partial)
            mark.write_text(text)
        writer = BundleWriter(partial, plan)
        try:
            yield writer
        except EdgeVLMError:
            shutil.rmtree(partial)
            raise
        except BaseException:
            if not (partial / "done").exists():
                shutil.rmtree(partial)
            raise
        for name in STATE:
            path = partial / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        _replace(partial, out)


def check_free(out: Path, force: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        BundleError: If `out` exists and `force` is not given or `out` is not a bundle.
    """
    if not out.parent.is_dir():
        raise BundleError(f"'{out}' cannot be written: there is no folder '{out.parent}'")
    if not os.path.lexists(out):
        return
    if not force:
        raise BundleError(f"'{out}' exists; choose another --output or give --force to replace it")
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise BundleError(f"'{out}' is not a bundle; --force replaces only bundles")


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The user's cache folder for edgevlm (`XDG_CACHE_HOME` or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgevlm"


def _read_manifest(folder: Path) -> Plan:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"'{folder}' has no {MANIFEST}: it is not a bundle")
    if path.stat().st_size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{MANIFEST} is larger than {MANIFEST_LIMIT_BYTES} bytes")
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as cause:
        raise BundleError(f"{MANIFEST} is not valid JSON: {cause}") from cause
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format_version is {version!r}, this edgevlm reads {FORMAT_VERSION};"
            " export the model again"
        )
    try:
        return read(Plan, document, MANIFEST)
    except (DocumentError, RecursionError) as cause:
        raise BundleError(str(cause)) from cause


def _check_files(folder: Path, plan: Plan) -> None:
    listed: set[str] = set()
    for index, entry in enumerate(plan.files):
        field = f"{MANIFEST}: files[{index}].path"
        parts = PurePosixPath(entry.path).parts
        odd = entry.path.startswith("/") or "\\" in entry.path or ":" in entry.path
        if odd or not parts or ".." in parts or entry.path != "/".join(parts):
            raise BundleError(f"{field} '{entry.path}' leaves the bundle")
        if entry.path in listed:
            raise BundleError(f"{field} '{entry.path}' is listed twice")
        listed.add(entry.path)
        path = folder
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise BundleError(f"{field} '{entry.path}' is behind a symbolic link")
        if not path.is_file():
            raise BundleError(f"'{entry.path}' is missing from the bundle")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"'{entry.path}' has {size} bytes, the manifest says {entry.bytes}")
    for file in (*(f.file for b in plan.blocks for f in b.functions), plan.host.embedding.file):
        if file not in listed:
            raise BundleError(f"{MANIFEST}: '{file}' is used but not listed in files")


def _check_functions(plan: Plan) -> None:
    names = [block.name for block in plan.blocks]
    if len(set(names)) != len(names):
        raise BundleError(f"{MANIFEST}: two blocks have one name")
    for block in plan.blocks:
        for function in block.functions:
            for tensor in (*function.inputs, *function.outputs):
                size = math.prod(tensor.shape)
                where = f"{MANIFEST}: {block.name}.{function.name}.{tensor.name}"
                if any(dim < 1 for dim in tensor.shape) or size > TENSOR_LIMIT:
                    raise BundleError(f"{where} has the shape {list(tensor.shape)}")
                if tensor.dtype not in ("f32", "i32"):
                    raise BundleError(f"{where} has the dtype '{tensor.dtype}'")
    _check_host(plan)


def _check_host(plan: Plan) -> None:
    host = plan.host
    numbers = {
        "image.height": host.image.height, "image.width": host.image.width,
        "image.views": host.image.views, "embedding.rows": host.embedding.rows,
        "embedding.columns": host.embedding.columns, "kv.layers": host.kv.layers,
        "kv.heads": host.kv.heads, "kv.head_size": host.kv.head_size, "kv.tokens": host.kv.tokens,
        "chunk": host.chunk, "vocabulary": host.vocabulary,
    }
    for name, value in numbers.items():
        if not 1 <= value <= TENSOR_LIMIT:
            raise BundleError(f"{MANIFEST}: host.{name} is {value}")
    entry = next(f for f in plan.files if f.path == host.embedding.file)
    if entry.bytes != host.embedding.bytes:
        raise BundleError(
            f"{MANIFEST}: host.embedding needs {host.embedding.bytes} bytes,"
            f" '{entry.path}' has {entry.bytes}"
        )
    for part in (*plan.layout.prompt, *plan.layout.image, *plan.layout.turn):
        if any(not 0 <= i < host.embedding.rows for i in part.ids):
            raise BundleError(f"{MANIFEST}: layout has an id outside the embedding table")


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    partial.mkdir(exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            import fcntl  # not on Windows, where two exports to one place are not told apart

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as cause:
            raise BundleError(f"another export is writing '{out}'") from cause
        yield


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _replace(partial: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.old"
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _remembered() -> dict[str, list[object]]:
    try:
        known = json.loads((cache_folder() / "checked.json").read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, list[object]]) -> None:
    path = cache_folder() / "checked.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = dict(list(known.items())[-4096:])
        temporary.write_text(json.dumps(kept))
        temporary.replace(path)
    except OSError:
        return  # a cache that cannot be written costs time, nothing else


Progress = Callable[[str], None]
