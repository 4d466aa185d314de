"""Atomic writes of text files, and checks in advance that a file can be written."""

from __future__ import annotations

import os
from pathlib import Path

from edgevlm.errors import EdgeVLMError, InputError


def write_text(path: Path, text: str) -> None:
    """Write a file, completely or not at all; replaces an existing file.

    Raises:
        InputError: If it cannot be written; one line.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, "utf-8", newline="")
        temporary.replace(path)
    except OSError as cause:
        raise InputError(f"'{path}' cannot be written: {cause.strerror}") from cause
    finally:
        temporary.unlink(missing_ok=True)


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
