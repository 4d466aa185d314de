"""No compute: loads and runs take the times that they are said to, and their bytes are counted.

For trying schedules: what `schedule.replay` predicts, `StreamedBlocks` does with this engine, in
threads and with real waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgevlm.errors import RuntimeLoadError
from edgevlm.runtimes.residency.costs import Cost, Costs, Key

NAME = "null"
SUMMARY = "no compute: carries schedules out, to count bytes and loads"
TARGETS: tuple[str, ...] = ()  # never chosen for a bundle


class Engine:
    """Holds bytes and waits.

    Attributes:
        bytes: Of what is loaded or being loaded.
        most_bytes: The highest that `bytes` has been.
        runs: Every run, in order.
    """

    name = NAME
    budgets, best, openers = True, "own", 1

    def __init__(self, costs: Costs, speed: float = 1.0) -> None:
        """`speed` 10 makes 10 ms of a cost take 1 ms; 0 waits for nothing."""
        self.costs, self.speed = costs, speed
        self.there: set[Key] = set()
        self.bytes = self.most_bytes = 0
        self.runs: list[Key] = []
        self._counting = threading.Lock()

    def bind(self, block: str, function: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Nothing."""

    def forms(self, block: str) -> tuple[str, ...]:
        """One."""
        return ("own",)

    def prepare(self, block: str, function: str, form: str) -> None:
        """Nothing."""

    def load(self, block: str, function: str | None = None, form: str = "own") -> None:
        """Take the bytes at once, and the time."""
        cost = self._cost(block, function)
        with self._counting:
            if (block, cost.function) in self.there:
                return
            self.bytes += cost.bytes
            self.most_bytes = max(self.most_bytes, self.bytes)
        self._wait(cost.load_ms)
        self.there.add((block, cost.function))

    def run(self, block: str, function: str) -> None:
        """Take the time.

        Raises:
            RuntimeLoadError: If the function is not loaded.
        """
        if (block, function) not in self.there:
            raise RuntimeLoadError(f"{block}.{function} is not loaded")
        self._wait(self._cost(block, function).run_ms)
        self.runs.append((block, function))

    def sync(self, block: str) -> None:
        """Nothing."""

    def unload(self, block: str, function: str | None = None) -> None:
        """Give the bytes back."""
        cost = self._cost(block, function)
        with self._counting:
            self.there.remove((block, cost.function))
            self.bytes -= cost.bytes

    def _cost(self, block: str, function: str | None) -> Cost:
        return next(c for c in self.costs.costs if (c.block, c.function) == (block, function))

    def _wait(self, ms: float) -> None:
        if self.speed:
            time.sleep(ms / 1e3 / self.speed)
