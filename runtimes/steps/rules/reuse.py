"""Fixed intervals: the velocity of the last computed step, until the next one."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import Floats, VelocityRule

SUMMARY = "Every n-th step is computed; the others have its velocity."
SOURCE = "FORA, arXiv 2407.01425, for the output of the whole denoiser"
DIFFERS = (
    "keeps one velocity instead of the outputs of each layer; counted as published, from the end"
)


@dataclass
class Rule(VelocityRule):
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
        self._velocity: Floats | None = None

    def computes(self, index: int) -> bool:
        """As `VelocityRule`."""
        return index == 0 or (self._steps - 1 - index) % self.interval == 0

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
