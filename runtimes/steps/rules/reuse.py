"""Fixed intervals: the velocity of the last computed step, until the next one."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import LastVelocityRule

SUMMARY = "Every n-th step is computed; the others have its velocity."
SOURCE = "FORA, arXiv 2407.01425, for the output of the whole denoiser"
DIFFERS = (
    "keeps one velocity instead of the outputs of each layer; counted as published, from the end"
)


@dataclass
class Rule(LastVelocityRule):
    """Computes the first step and each whose number from the end is a multiple of the interval.

    Args:
        interval: Steps from one that is computed to the next.
    """

    interval: int = 2

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        steps = schedule.steps
        if not 1 <= self.interval <= steps:
            raise ValueError(f"interval is {self.interval}, of {steps} steps")
        self._steps = steps
        self._velocity = None

    def computes(self, index: int) -> bool:
        """As `VelocityRule`."""
        return index == 0 or (self._steps - 1 - index) % self.interval == 0
