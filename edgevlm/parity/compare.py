"""How far an engine's numbers are from PyTorch's: rel_error and psnr_db.

    rel_error = max|a - e| / max|e|            of the worst call of a function
    psnr_db   = 20 log10(max|e| / rmse)        over all calls of a function, of its worst output

`a` is the actual array, `e` the expected one. Numbers that are not finite, on either side, count as
the worst difference: rel_error is float32's largest number, psnr_db is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WORST_REL_ERROR = float(np.finfo(np.float32).max)
WORST_PSNR_DB = 0.0


def difference(actual: Array, expected: Array) -> tuple[float, float | None]:
    """rel_error and psnr_db of one array; psnr_db is None where the two are equal."""
    output = _Output()
    return output.add(actual, expected), output.psnr_db


class Comparator:
    """Collects the calls of every function."""

    def __init__(self) -> None:
        self._rel_errors: dict[tuple[str, str], float] = {}
        self._outputs: dict[tuple[str, str], dict[str, _Output]] = {}

    def add(
        self,
        block: str,
        function: str,
        actual: Mapping[str, Array],
        expected: Mapping[str, Array],
    ) -> None:
        """One call: its outputs by name, and what they should be, in the same shapes."""
        key = block, function
        outputs = self._outputs.setdefault(key, {})
        for name, array in expected.items():
            rel_error = outputs.setdefault(name, _Output()).add(actual[name], array)
            self._rel_errors[key] = max(self._rel_errors.get(key, 0.0), rel_error)

    def rel_error(self, block: str, function: str) -> float:
        """Of the worst call.

        Raises:
            KeyError: If the function was never called: nothing is known about it.
        """
        return self._rel_errors[block, function]

    def psnr_db(self, block: str, function: str) -> float | None:
        """Of the output that differs most, over all calls; None where none differs.

        Raises:
            KeyError: If the function was never called.
        """
        each = [output.psnr_db for output in self._outputs[block, function].values()]
        return min((psnr_db for psnr_db in each if psnr_db is not None), default=None)


@dataclass
class _Output:
    """One output of a function over its calls."""

    peak: float = 0.0  # max|e|
    squares: float = 0.0  # sum of (a - e)^2
    count: int = 0
    finite: bool = True

    def add(self, actual: Array, expected: Array) -> float:
        """Take a call in; rel_error of this call."""
        a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        if not (np.isfinite(a).all() and np.isfinite(e).all()):
            self.finite = False
            return WORST_REL_ERROR
        distance, peak = np.abs(a - e), float(np.abs(e).max())
        self.peak = max(self.peak, peak)
        self.squares += float(np.square(distance).sum())
        self.count += e.size
        return float(distance.max()) / (peak or 1.0)

    @property
    def psnr_db(self) -> float | None:
        """Over all calls so far; None where nothing differs."""
        if not self.finite:
            return WORST_PSNR_DB
        if not self.squares:
            return None
        return 20 * float(np.log10((self.peak or 1.0) / np.sqrt(self.squares / self.count)))
