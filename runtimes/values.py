"""Types and ranges of what a caller gives, checked where it enters: one line, never a raw error."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevlm.errors import InputError


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number of at least `least` and at most `most`; 2.0 and True are none.

    Raises:
        InputError: If it is something else.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as cause:
        raise InputError(f"{name} must be a whole number, got {_shown(value)}") from cause
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {_shown(number)}")
    if most is not None and number > most:
        raise InputError(f"{name} must be at most {most}, got {_shown(number)}")
    return number


def real(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> float:
    """A finite number of at least `least` and at most `most`.

    Raises:
        InputError: If it is something else.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError
        number = float(value)
    except (TypeError, OverflowError) as cause:
        raise InputError(f"{name} must be a number, got {_shown(value)}") from cause
    if not (math.isfinite(number) and least <= number <= most):
        span = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"{name} must be {span}, got {_shown(value)}")
    return number


def text(name: str, value: Any) -> str:
    """A text that UTF-8 can spell.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(value, str):
        hint = "; decode it first" if isinstance(value, bytes | bytearray) else ""
        raise InputError(f"{name} must be a text, got {type(value).__name__}{hint}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{name} is not valid UTF-8")
    return value


def texts(name: str, values: Any) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        InputError: If it is something else, such as one text.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InputError(f"{name} must be a list of texts, got {type(values).__name__}")
    return tuple(text(f"{name}[{index}]", value) for index, value in enumerate(values))


def path(name: str, value: Any) -> Path:
    """A path, as a text or a `Path`.

    Raises:
        InputError: If it is something else, or the system takes no such name.
    """
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} must be a path, got {type(value).__name__}")
    spelled = os.fspath(value)
    if "\0" in spelled:
        raise InputError(f"{name} is not the name of a file: it has a zero byte")
    try:
        os.lstat(spelled)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it may be written yet
    except OSError as cause:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{name} {_shown(spelled)} cannot be used: {cause.strerror}") from cause
    except ValueError as cause:
        raise InputError(f"{name} is not the name of a file: {_shown(spelled)}") from cause
    return Path(spelled)


def instance(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another class.

    Raises:
        InputError: With both names.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")


def function(name: str, value: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        InputError: If it cannot.
    """
    if not callable(value):
        raise InputError(f"{name} must be a function, got {type(value).__name__}")


def _shown(value: Any) -> str:
    plain = isinstance(value, int | float | str) and not _is_huge(value)
    shown = repr(value) if plain else type(value).__name__
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _is_huge(value: Any) -> bool:
    """Whether Python refuses to spell a number."""
    return isinstance(value, int) and value.bit_length() > 200
