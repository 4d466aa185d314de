"""Random steps, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import Floats, VelocityRule

SUMMARY = "Steps drawn by a seed are computed; the others have the velocity of the last one."
SOURCE = "none: a baseline at the same number of calls"
DIFFERS = "no paper"


@dataclass
class Rule(VelocityRule):
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
        self._velocity: Floats | None = None

    def computes(self, index: int) -> bool:
        """As `VelocityRule`."""
        return index in self._computed

    def computed(self, index: int, velocity: Floats) -> None:
        """As `VelocityRule`."""
        self._velocity = velocity

    def forecast(self, index: int) -> Floats:
        """As `VelocityRule`."""
        assert self._velocity is not None
        return self._velocity

    def state(self) -> dict[str, Floats]:
        """As `Rule`."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def restore(self, state: dict[str, Floats]) -> None:
        """As `Rule`."""
        self._velocity = state.get("velocity")
