"""Random steps, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import LastVelocityRule

SUMMARY = "Steps drawn by a seed are computed; the others have the velocity of the last one."
SOURCE = "none: a baseline at the same number of calls"
DIFFERS = "no paper"


@dataclass
class Rule(LastVelocityRule):
    """Computes the first step and others that are drawn.

    Args:
        calls: Steps that are computed; 0 is half of all.
        seed: Of the draw.
    """

    calls: int = 0
    seed: int = 0

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        steps = schedule.steps
        calls = self.calls or -(-steps // 2)
        if not 1 <= calls <= steps or self.seed < 0:
            raise ValueError(f"calls is {calls}, of {steps} steps, seed {self.seed} from 0 on")
        others = 1 + np.random.default_rng(self.seed).permutation(steps - 1)[: calls - 1]
        self._computed = {0, *map(int, others)}
        self._velocity = None

    def computes(self, index: int) -> bool:
        """As `VelocityRule`."""
        return index in self._computed
