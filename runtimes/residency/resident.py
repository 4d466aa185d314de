"""All blocks of a bundle in memory, loaded before the first run."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgevlm.bundle.plan import Plan
from edgevlm.runtimes.engine import Engine
from edgevlm.runtimes.residency.memory import return_freed


class ResidentBlocks:
    """Every block is in memory."""

    keeps_all = True

    def __init__(self, plan: Plan[Any], engine: Engine) -> None:
        self.plan, self.engine, self.loads = plan, engine, 0
        self.bind, self.run = engine.bind, engine.run

    def open(self) -> None:
        """Load every function in the engine's mode for resident blocks, several in parallel."""
        keys = [(block.name, f.name) for block in self.plan.blocks for f in block.functions]
        with ThreadPoolExecutor(self.engine.parallel_loads) as pool:
            load, mode = self.engine.load, self.engine.resident_mode
            for loaded in [pool.submit(load, block, function, mode) for block, function in keys]:
                loaded.result()
        self.loads = len(self.plan.blocks)
        return_freed()

    def run_each(self, block: str, function: str, turns: Iterable[object]) -> None:
        """Run a function once for each of `turns`."""
        for _ in turns:
            self.engine.run(block, function)

    def expect(self, pass_name: str, count: int | None) -> None:
        """Do nothing: every function is in memory."""

    def shortage(self, size: int) -> int:
        """Nothing is too much without a budget."""
        return 0

    def settle(self) -> None:
        """Do nothing: there is no budget."""
