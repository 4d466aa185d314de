"""A clock between a loop and its blocks, and between the blocks and the engine.

    loop -> Recorder -> ResidentBlocks or StreamedBlocks -> _TimedEngine -> engine
              steps                         loads, runs, evictions

A step is what the loop waits for: a run, and the loads and evictions before it. Each takes two
readings of the clock and an entry of a list; memory is read at most once in `PAUSE_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import PRIVATE, Blocks
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.residency.memory import footprint_bytes, resident_bytes, return_freed

# Reading memory takes some hundredths of a millisecond, so this is at most one per cent.
PAUSE_S = 0.01


class TimedCall(NamedTuple):
    """One `load`, `run`, `evict` or `step`; times are of `time.perf_counter`, in seconds."""

    kind: str
    block: str
    function: str
    start: float
    end: float

    @property
    def ms(self) -> float:
        """Duration in milliseconds."""
        return (self.end - self.start) * 1e3


class Recorder:
    """Blocks that record their calls; `calls` and `memory` grow until `clear`."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.loads, self.keeps_all = blocks, blocks.loads, blocks.keeps_all
        self.engine: Any = _TimedEngine(blocks.engine, self)
        self.calls: list[TimedCall] = []
        self.memory: list[tuple[float, int]] = []
        self.sample_footprint = False
        self.peak_footprint_bytes: int | None = None
        self._sampled = 0.0

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""
        self.blocks.bind(block, function, arrays)

    def open(self) -> None:
        """Load the blocks that stay resident."""
        self.blocks.open()
        self.loads = self.blocks.loads

    def expect(self, pass_name: str, count: int | None) -> None:
        """So many passes of this name follow."""
        self.blocks.expect(pass_name, count)

    def shortage(self, size: int) -> int:
        """Bytes that a budget lacks for `size` more."""
        return self.blocks.shortage(size)

    def settle(self) -> None:
        """Count what the process took since."""
        self.blocks.settle()

    def run(self, block: str, function: str) -> None:
        """Run a function; where the blocks bypass the timed engine, the step is the run."""
        self.run_each(block, function, (None,))

    def run_each(self, block: str, function: str, turns: Iterable[object]) -> None:
        """Run a function once for each of `turns`, in one step."""
        before, start = len(self.calls), time.perf_counter()
        self.blocks.run_each(block, function, turns)
        end = time.perf_counter()
        if not any(call.kind == "run" for call in self.calls[before:]):
            self.calls.append(TimedCall("run", block, function, start, end))
        self.calls.append(TimedCall("step", block, function, start, end))
        self.loads = self.blocks.loads
        self.sample_memory()

    def clear(self) -> None:
        """Forget all calls and samples, and sample the memory."""
        self.calls, self.memory = [], []
        self.sample_memory(now=True)

    def sample_memory(self, now: bool = False) -> None:
        """Sample resident memory, unless that was done within `PAUSE_S`."""
        at = time.perf_counter()
        if now or at - self._sampled > PAUSE_S:
            self._sampled = at
            self.memory.append((at, resident_bytes()))
            if self.sample_footprint and (size := footprint_bytes()) is not None:
                self.peak_footprint_bytes = max(size, self.peak_footprint_bytes or 0)


@contextmanager
def recording(loop: Loop) -> Iterator[Recorder]:
    """Replace a loop's blocks by a recorder until the end of the body."""
    blocks, engine = loop.blocks, loop.blocks.engine
    recorder = Recorder(blocks)
    loop.blocks, blocks.engine = recorder, recorder.engine
    try:
        yield recorder
    finally:
        loop.blocks, blocks.engine = blocks, engine


class _TimedEngine:
    """An engine whose loads, runs and evictions are timed; an eviction returns freed memory."""

    def __init__(self, engine: Any, recorder: Recorder) -> None:
        self._engine, self._recorder = engine, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load(self, block: str, function: str | None = None, mode: str = PRIVATE) -> None:
        """Open a block, or a function of it."""
        self._record("load", block, function, lambda: self._engine.load(block, function, mode))
        self._recorder.sample_memory(now=True)

    def run(self, block: str, function: str) -> None:
        """Run a function."""
        self._record("run", block, function, lambda: self._engine.run(block, function))

    def unload(self, block: str, function: str | None = None) -> None:
        """Close a block, or a function of it."""

        def close() -> None:
            self._engine.unload(block, function)
            return_freed()

        self._recorder.sample_memory(now=True)
        self._record("evict", block, function, close)
        self._recorder.sample_memory(now=True)

    def _record(
        self, kind: str, block: str, function: str | None, action: Callable[[], None]
    ) -> None:
        start = time.perf_counter()
        action()
        call = TimedCall(kind, block, function or "", start, time.perf_counter())
        self._recorder.calls.append(call)
