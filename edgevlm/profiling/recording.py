"""A clock between a loop and its blocks, and between those and the engine.

    loop -> Recorder -> ResidentBlocks or StreamedBlocks -> _Clocked -> engine
              steps                         loads, runs, evictions

A step is what the loop waits for: a run, and whatever has to happen before it. Each costs two
readings of the clock and an entry of a list; memory is read at most once in `PAUSE_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import PRIVATE, Blocks
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.residency.memory import footprint_bytes, resident_bytes, return_freed

# Reading memory takes some hundredths of a millisecond; so it is at most a per cent.
PAUSE_S = 0.01


class Mark(NamedTuple):
    """One `load`, `run`, `evict` or `step`; times are of `time.perf_counter`, in seconds."""

    kind: str
    block: str
    function: str
    start: float
    end: float


class Recorder:
    """Blocks that note when they ran; `marks` and `memory` grow until `clear`."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.loads, self.keeps_all = blocks, blocks.loads, blocks.keeps_all
        self.engine: Any = _Clocked(blocks.engine, self)
        self.marks: list[Mark] = []
        self.memory: list[tuple[float, int]] = []
        self.watch_footprint = False
        self.peak_footprint_bytes: int | None = None
        self._read = 0.0

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""
        self.blocks.bind(block, function, arrays)

    def open(self) -> None:
        """Load what has to be there."""
        self.blocks.open()
        self.loads = self.blocks.loads

    def expect(self, pass_name: str, count: int | None) -> None:
        """So many passes of this name follow."""
        self.blocks.expect(pass_name, count)

    def run(self, block: str, function: str) -> None:
        """Run a function; where the blocks call the engine past its clock, the step is the run."""
        before, start = len(self.marks), time.perf_counter()
        self.blocks.run(block, function)
        end = time.perf_counter()
        if not any(m.kind == "run" for m in self.marks[before:]):
            self.marks.append(Mark("run", block, function, start, end))
        self.marks.append(Mark("step", block, function, start, end))
        self.loads = self.blocks.loads
        self.look()

    def clear(self) -> None:
        """Forget what was noted, and look at the memory."""
        self.marks, self.memory = [], []
        self.look(now=True)

    def look(self, now: bool = False) -> None:
        """Read the memory, if it was not read just now."""
        at = time.perf_counter()
        if now or at - self._read > PAUSE_S:
            self._read = at
            self.memory.append((at, resident_bytes()))
            if self.watch_footprint and (found := footprint_bytes()) is not None:
                self.peak_footprint_bytes = max(found, self.peak_footprint_bytes or 0)


@contextmanager
def recording(loop: TextLoop) -> Iterator[Recorder]:
    """A recorder in the place of a loop's blocks, until the end of the body."""
    blocks, engine = loop.blocks, loop.blocks.engine
    recorder = Recorder(blocks)
    loop.blocks, blocks.engine = recorder, recorder.engine
    try:
        yield recorder
    finally:
        loop.blocks, blocks.engine = blocks, engine


class _Clocked:
    """An engine whose loads, runs and evictions are noted; an eviction gives the memory back."""

    def __init__(self, engine: Any, recorder: Recorder) -> None:
        self._engine, self._recorder = engine, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load(self, block: str, function: str | None = None, mode: str = PRIVATE) -> None:
        """Open a block, or a function of it."""
        self._note("load", block, function, lambda: self._engine.load(block, function, mode))
        self._recorder.look(now=True)

    def run(self, block: str, function: str) -> None:
        """Run a function."""
        self._note("run", block, function, lambda: self._engine.run(block, function))

    def unload(self, block: str, function: str | None = None) -> None:
        """Close a block, or a function of it."""

        def close() -> None:
            self._engine.unload(block, function)
            return_freed()

        self._recorder.look(now=True)
        self._note("evict", block, function, close)
        self._recorder.look(now=True)

    def _note(
        self, kind: str, block: str, function: str | None, action: Callable[[], None]
    ) -> None:
        start = time.perf_counter()
        action()
        mark = Mark(kind, block, function or "", start, time.perf_counter())
        self._recorder.marks.append(mark)
