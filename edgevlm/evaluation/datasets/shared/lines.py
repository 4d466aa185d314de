"""What datasets made of files share: JSON Lines, and paths that stay inside their folder.

A dataset may come from anybody. A line is bounded before it is parsed, a path may not leave the
dataset's folder, not even by a link, and each failure is one line with the file and the number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edgevlm.bundle.documents import keys_once, require_regular, shown
from edgevlm.errors import InputError

LINE_LIMIT = 10_000_000  # characters; 100 times the longest line of NLVR


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with their line numbers from 1; empty lines are passed over.

    Raises:
        InputError: If the file cannot be read, or a line is no JSON object or too long.
    """
    try:
        require_regular(path)
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(_bounded(file), 1):
                if len(line) > LINE_LIMIT:
                    raise InputError(
                        f"'{path}' line {number} has over {LINE_LIMIT:,} characters; it is cut off"
                    )
                if line.strip():
                    yield number, _parsed(line, f"'{path}' line {number}")
    except FileNotFoundError as cause:
        raise InputError(f"no file at '{path}'") from cause
    except IsADirectoryError as cause:
        raise InputError(f"'{path}' is a folder, expected a file of JSON lines") from cause
    except UnicodeDecodeError as cause:
        raise InputError(f"'{path}' is not UTF-8 text") from cause
    except OSError as cause:
        raise InputError(f"'{path}' cannot be read: {cause.strerror}") from cause


def inside(folder: Path, name: str, where: str) -> Path:
    """Path of a file in `folder`.

    Args:
        folder: Folder of the dataset.
        name: Relative path with `/`, as the dataset writes it.
        where: Begins an error line: file and number.

    Raises:
        InputError: If the path is absolute, has `..`, leads outside by a link, or is no file.
    """
    bad = not name or "\\" in name or "\0" in name or PurePosixPath(name).is_absolute()
    if bad or ".." in PurePosixPath(name).parts or ":" in name.partition("/")[0]:
        raise InputError(
            f"{where}: the path {shown(name)} must be relative to the dataset's folder,"
            " without '..'"
        )
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as cause:  # also a name that is too long, a loop of links
        raise InputError(f"{where}: no file {shown(name)}") from cause
    if not resolved.is_relative_to(folder.resolve()):
        raise InputError(f"{where}: {shown(name)} is a link that leads out of the dataset's folder")
    if not resolved.is_file():
        raise InputError(f"{where}: {shown(name)} is not a file")
    return path


def first_scenes(scenes: Iterable[str], limit: int | None) -> set[str]:
    """The first `limit` different names, or all."""
    return set(list(dict.fromkeys(scenes))[:limit])


def _bounded(file: Any) -> Iterator[str]:
    while line := file.readline(LINE_LIMIT + 1):
        yield line


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line, object_pairs_hook=keys_once)
    except (ValueError, RecursionError) as cause:
        raise InputError(f"{where} is not valid JSON: {getattr(cause, 'msg', cause)}") from cause
    if not isinstance(document, dict):
        raise InputError(f"{where} must be a JSON object, got {shown(document)}")
    if any("\ud800" <= letter <= "\udfff" for letter in json.dumps(document, ensure_ascii=False)):
        raise InputError(f"{where} has text that is not valid Unicode")
    return document
