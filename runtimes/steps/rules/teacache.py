"""TeaCache: the layers run when the timestep's embedding has gone far enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import BlocksRule, Floats, moved

SUMMARY = "The layers run when changes of what they take of the timestep add up to a threshold."
SOURCE = "TeaCache, arXiv 2411.19108, section 3.3; for Wan its code compares the modulation"
DIFFERS = "a polynomial of one's own by c0 to c4; without one a change counts as it is"


@dataclass
class Rule(BlocksRule):
    """Adds up relative changes from step to step; first and last steps are computed.

    Args:
        threshold: Sum at which the layers run.
        c0: Of the polynomial c4 x^4 + c3 x^3 + c2 x^2 + c1 x + c0 of a change x.
        c1: See `c0`.
        c2: See `c0`.
        c3: See `c0`.
        c4: See `c0`.
    """

    reads = True
    threshold: float = 0.1
    c0: float = 0.0
    c1: float = 1.0
    c2: float = 0.0
    c3: float = 0.0
    c4: float = 0.0

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        steps = schedule.steps
        if not 0 <= self.threshold <= 100:
            raise ValueError(f"threshold is {self.threshold:g}, expected 0 to 100")
        self._steps = steps
        self._before: dict[int, Floats] = {}
        self._sum: dict[int, float] = {}

    def runs(self, index: int, branch: int, signal: Floats) -> bool:
        """As `BlocksRule`."""
        before, self._before[branch] = self._before.get(branch), np.array(signal)
        if before is None or index in (0, self._steps - 1):
            self._sum[branch] = 0.0
            return True
        powers = (self.c4, self.c3, self.c2, self.c1, self.c0)
        change = float(np.polyval(powers, moved(signal, before)))
        self._sum[branch] = float(np.float32(self._sum[branch] + change))  # as `state` keeps it
        if self._sum[branch] < self.threshold:
            return False
        self._sum[branch] = 0.0
        return True

    def state(self) -> dict[str, Floats]:
        """As `Rule`."""
        sums = {f"sum_{b}": np.full(1, value, np.float32) for b, value in self._sum.items()}
        return sums | {f"before_{branch}": array for branch, array in self._before.items()}

    def restore(self, state: dict[str, Floats]) -> None:
        """As `Rule`."""
        for name, array in state.items():
            kind, _, branch = name.partition("_")
            if kind == "sum":
                self._sum[int(branch)] = float(array[0])
            else:
                self._before[int(branch)] = array
