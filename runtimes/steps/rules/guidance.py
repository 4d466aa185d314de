"""Guidance in some steps alone."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import GuidanceRule

SUMMARY = "Guidance from step start until before step stop (0: half of all); else the text alone."
SOURCE = "guidance in an interval, arXiv 2404.07724"
DIFFERS = "the interval is of steps, not of noise levels"


@dataclass
class Rule(GuidanceRule):
    """Guides from step `start` until before step `stop`.

    Args:
        start: First step that is guided.
        stop: First step after it that is not; 0 is half of all steps.
    """

    start: int = 0
    stop: int = 0

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        steps = schedule.steps
        self._stop = self.stop or -(-steps // 2)
        if not 0 <= self.start < self._stop <= steps:
            raise ValueError(f"start is {self.start} and stop {self._stop}, of {steps} steps")

    def guides(self, index: int) -> bool:
        """As `GuidanceRule`."""
        return self.start <= index < self._stop
