"""First-block cache: the layers run when what the first block adds has changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import BlocksRule, Floats, moved

SUMMARY = "The first block runs at each step; the others when what it adds has changed enough."
SOURCE = "First Block Cache (ParaAttention), as diffusers' FirstBlockCache"
DIFFERS = "the first block of a bundle may be several layers; each text decides for itself"


@dataclass
class Rule(BlocksRule):
    """Compares what the first block adds with what it added at the last computed step.

    Args:
        threshold: Relative change up to which the other layers are skipped.
    """

    reads, first = True, 1
    threshold: float = 0.05

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        if not 0 <= self.threshold <= 10:
            raise ValueError(f"threshold is {self.threshold:g}, expected 0 to 10")
        self._added: dict[int, Floats] = {}

    def runs(self, index: int, branch: int, signal: Floats) -> bool:
        """As `BlocksRule`."""
        before = self._added.get(branch)
        if before is not None and moved(signal, before) <= self.threshold:
            return False
        self._added[branch] = np.array(signal)
        return True

    def state(self) -> dict[str, Floats]:
        """As `Rule`."""
        return {f"added_{branch}": array for branch, array in self._added.items()}

    def restore(self, state: dict[str, Floats]) -> None:
        """As `Rule`."""
        self._added = {int(name[6:]): array for name, array in state.items()}
