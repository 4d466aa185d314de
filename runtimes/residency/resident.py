"""All blocks of a bundle in memory, loaded before the first run."""

from __future__ import annotations

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
