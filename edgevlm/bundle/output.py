"""One output file: checked before the work starts, written complete or not at all."""

from __future__ import annotations

from pathlib import Path

from edgevlm.errors import InputError


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before minutes of work.

    Raises:
        InputError: If its folder does not exist, or the path is a folder.
    """
    if not path.parent.is_dir():
        raise InputError(f"'{path}' cannot be written: there is no folder '{path.parent}'")
    if path.is_dir():
        raise InputError(f"'{path}' cannot be written: it is a folder")


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all, replacing an existing one.

    Raises:
        InputError: If it cannot be written; one line.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, "utf-8", newline="")
        temporary.replace(path)
    except OSError as cause:
        raise InputError(f"'{path}' cannot be written: {cause.strerror}") from cause
    finally:
        temporary.unlink(missing_ok=True)
