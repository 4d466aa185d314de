"""Blocks of a bundle as engines and loops see them, and all of them in memory.

Engine     what an engine does: bind, load, run, unload
Blocks     what a loop asks for: `Held` here, `streaming.Streamed` within a budget
Held       every block is loaded before the first run
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from numpy.typing import NDArray

from edgevlm.bundle.plan import Plan
from edgevlm.runtimes.residency.memory import return_freed

Array = NDArray[Any]


class Engine(Protocol):
    """What runs functions; `on_onnxruntime.Engine` documents each call."""

    name: str
    budgets: bool  # whether functions can come and go one by one
    best: str  # the form for a block that stays where memory is no matter
    openers: int  # threads that may load at a time

    def forms(self, block: str) -> tuple[str, ...]:
        """Ways to open a block."""

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""

    def prepare(self, block: str, function: str, form: str) -> None:
        """Do once what loads of this form need; it takes memory that is not given back."""

    def load(self, block: str, function: str | None = None, form: str = "own") -> None:
        """Open a block, or a function of it."""

    def run(self, block: str, function: str) -> None:
        """Run a function over its arrays."""

    def sync(self, block: str) -> None:
        """Bring the host's arrays of a block's cache up to date."""

    def unload(self, block: str, function: str | None = None) -> None:
        """Close a block, or a function of it."""


class Blocks(Protocol):
    """What a loop asks for: bind everything, open, then run in the order of the plan's passes."""

    engine: Engine
    loads: int
    keeps_all: bool  # whether every function is in memory

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""

    def open(self) -> None:
        """All functions are bound: load what has to be there."""

    def begin(self, name: str, passes: int | None) -> None:
        """So many passes of this name follow; None is as many as come."""

    def run(self, block: str, function: str) -> None:
        """Run a function, loaded or not."""


class Held:
    """Every block is in memory."""

    keeps_all = True

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self.plan, self.engine, self.loads = plan, engine, 0
        self.bind, self.run = engine.bind, engine.run

    def open(self) -> None:
        """Load every function in the engine's best form, as many at a time as the engine can."""
        keys = [(block.name, f.name) for block in self.plan.blocks for f in block.functions]
        with ThreadPoolExecutor(self.engine.openers) as pool:
            load, best = self.engine.load, self.engine.best
            for opened in [pool.submit(load, block, function, best) for block, function in keys]:
                opened.result()
        self.loads = len(self.plan.blocks)
        return_freed()

    def begin(self, name: str, passes: int | None) -> None:
        """Nothing: all is there."""
