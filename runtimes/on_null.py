"""No compute: loads and runs wait for given times, and their bytes are counted.

It tests schedules: `StreamedBlocks` executes with this engine, in threads and in real time, what
`schedule.replay` predicts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from edgevlm.errors import RuntimeLoadError
from edgevlm.runtimes import engine
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.residency.timings import FunctionTiming, Timings


class Engine(engine.Engine):
    """Holds bytes and waits.

    Attributes:
        bytes: Bytes of functions that are loaded or being loaded.
        most_bytes: Peak of `bytes`.
        runs: Every run, in order.
    """

    name, budgets = "null", True  # without a target it is never chosen for a bundle

    def __init__(self, timings: Timings, speed: float = 1.0) -> None:
        """`speed` 10 makes 10 ms of a timing take 1 ms; 0 waits for nothing."""
        self.timings, self.speed = timings, speed
        self.threads, self.parallel_loads, self.compile_ms = None, 1, {}
        self.resident: set[engine.Key] = set()
        self.bytes = self.most_bytes = 0
        self.runs: list[engine.Key] = []
        self._counting = threading.Lock()

    @classmethod
    def summary(cls) -> str:
        """Its purpose."""
        return "no compute: executes schedules to count bytes and loads"

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Do nothing."""

    def load(self, block: str, function: str | None = None, mode: str = engine.PRIVATE) -> None:
        """Count the bytes at once, then wait."""
        timing = self._timing(block, function)
        with self._counting:
            if (block, timing.function) in self.resident:
                return
            self.bytes += timing.bytes
            self.most_bytes = max(self.most_bytes, self.bytes)
        self._wait(timing.load_ms)
        self.resident.add((block, timing.function))

    def run(self, block: str, function: str) -> None:
        """Wait for the run time.

        Raises:
            RuntimeLoadError: If the function is not loaded.
        """
        if (block, function) not in self.resident:
            raise RuntimeLoadError(f"{block}.{function} is not loaded")
        self._wait(self._timing(block, function).run_ms)
        self.runs.append((block, function))

    def unload(self, block: str, function: str | None = None) -> None:
        """Subtract the bytes."""
        timing = self._timing(block, function)
        with self._counting:
            self.resident.remove((block, timing.function))
            self.bytes -= timing.bytes

    def _timing(self, block: str, function: str | None) -> FunctionTiming:
        return next(t for t in self.timings.functions if (t.block, t.function) == (block, function))

    def _wait(self, ms: float) -> None:
        if self.speed:
            time.sleep(ms / 1e3 / self.speed)
