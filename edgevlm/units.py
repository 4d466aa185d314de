"""Sizes and times as people write and read them; MB are 10^6 bytes."""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Sequence
from statistics import mean

from edgevlm.errors import RecipeError

MB = 10**6


def parse_bytes(text: str) -> int:
    """`64MB` -> 64_000_000; units kB, MB, GB are powers of ten, KiB, MiB, GiB of two.

    Raises:
        RecipeError: If the text has another form.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": MB, "gb": 10**9}
    units |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].lower() not in units:
        raise RecipeError(f"a size looks like 64MB or 1.5GB, got '{text[:60]}'")
    number = float(match[1]) if "." in match[1] else int(match[1])
    return int(number * units[match[2].lower()])


def spell_bytes(size: int) -> str:
    """64_000_000 -> `64MB`: what `parse_bytes` reads, in the largest unit that divides the size."""
    units = {"GB": 10**9, "MB": MB, "kB": 10**3, "": 1}
    count = operator.index(size)
    return next(f"{count // unit}{name}" for name, unit in units.items() if count % unit == 0)


def megabytes(size: float, unit: str = " MB") -> str:
    """Bytes as MB with one decimal."""
    return f"{size / MB:,.1f}{unit}"


def milliseconds(value: float) -> str:
    """`0.031`, `4.20`, `37.1`, `1,512`: milliseconds without the unit."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}"


class TimeLeft:
    """How long the rest of some steps takes, from those that are done: steps of a kind are alike.

    Args:
        kinds: The kind of each step, in order.
        clock: Seconds.
    """

    def __init__(
        self, kinds: Sequence[str], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._kinds, self._clock = kinds, clock
        self._began: tuple[int, float] | None = None
        self._seconds: dict[str, float] = {}  # of the last step of each kind

    def begin(self, index: int) -> str:
        """Begin a step: `, about 40 s left`, with that step; empty while nothing is known.

        Below a second nothing is said either.
        """
        now = self._clock()
        if self._began:
            before, since = self._began
            self._seconds[self._kinds[before]] = now - since
        self._began = index, now
        if not self._seconds:
            return ""
        other = mean(self._seconds.values())
        left = sum(self._seconds.get(kind, other) for kind in self._kinds[index:])
        if left < 1:
            return ""
        return f", about {f'{left:.0f} s' if left < 99.5 else f'{left / 60:.0f} min'} left"
