"""Text files that are written whole or not at all, and a look beforehand whether they can be."""

from __future__ import annotations

import os
from pathlib import Path

from edgevlm.errors import EdgeVLMError, InputError


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all, in the place of what is there.

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
    """Refuse a place whose folder is not there, before minutes of work.

    Raises:
        EdgeVLMError: One of `kind`.
    """
    if not path.parent.is_dir():
        raise kind(f"'{path}' cannot be written: there is no folder '{path.parent}'")


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before minutes of work.

    Raises:
        InputError: If its folder is not there, or it is a folder itself.
    """
    check_folder(path)
    if path.is_dir():
        raise InputError(f"'{path}' cannot be written: it is a folder")
