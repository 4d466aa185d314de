"""MagCache: the layers are skipped while measured magnitudes say that they would add the same."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import BlocksRule, Floats

SUMMARY = "Layers are skipped while the drift of what they add, measured at export, stays small."
SOURCE = "MagCache, arXiv 2506.09045, as diffusers' MagCache"
DIFFERS = (
    "magnitudes are measured when a bundle is exported with --rule magcache, so the skipped steps"
    " are known before a run"
)


@dataclass
class Rule(BlocksRule):
    """Multiplies the magnitudes since the last computed step, and adds up how far that is from 1.

    Args:
        threshold: Sum up to which the layers are skipped.
        longest: Steps in a row that are skipped at most.
        retention: Share of the steps, at the beginning, that are all computed.
    """

    measured = True
    threshold: float = 0.06
    longest: int = 3
    retention: float = 0.2

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        if not (0 <= self.threshold <= 100 and self.longest >= 1 and 0 <= self.retention <= 1):
            raise ValueError("threshold is from 0 to 100, longest 1 or more, retention from 0 to 1")
        if not schedule.magnitudes:
            raise ValueError("the bundle has no magnitudes; export it with --rule magcache")
        self.computed = self._computed(schedule)

    def runs(self, index: int, branch: int, signal: Floats) -> bool:
        """As `BlocksRule`."""
        return self.computed[index]

    def _computed(self, schedule: Schedule) -> list[bool]:
        """Whether the layers run, for each step."""
        retained = int(self.retention * schedule.steps + 0.5)
        computed, product, drift, skipped = list[bool](), 1.0, 0.0, 0
        for index, magnitude in enumerate(schedule.magnitudes):
            if index >= max(retained, 1):
                product, skipped = product * magnitude, skipped + 1
                drift += abs(1 - product)
            runs = index < max(retained, 1) or drift > self.threshold or skipped > self.longest
            if runs:
                product, drift, skipped = 1.0, 0.0, 0
            computed.append(runs)
        return computed
