"""Forecasts: a Taylor series of the velocity over steps, from those that were computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import Floats, VelocityRule

SUMMARY = "Some steps are computed; between them the velocity goes on as its differences say."
SOURCE = "TaylorSeer, arXiv 2503.06923, equations 5 and 6, for the output of the whole denoiser"
DIFFERS = "one series for the velocity instead of one for each module; order=1 is a line"


@dataclass
class Rule(VelocityRule):
    """Divided differences over the steps between computed ones, and their Taylor sum.

    Args:
        interval: Steps from one that is computed to the next.
        order: Highest difference.
        first: Steps at the beginning that are all computed.
        gap: Steps from the last of these to the next one that is computed: 0 is the interval, as
            the authors count; 2 is where diffusers goes on.
    """

    interval: int = 3
    order: int = 1
    first: int = 3
    gap: int = 0

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        steps = schedule.steps
        if not (1 <= self.interval <= steps and 1 <= self.first <= steps and 0 <= self.order <= 4):
            raise ValueError(
                f"interval is {self.interval} and first {self.first} of {steps} steps, order"
                f" {self.order} of 4 at most"
            )
        if not 0 <= self.gap <= max(self.interval, 2):
            raise ValueError(f"gap is {self.gap}, expected 0 to {max(self.interval, 2)}")
        self._factors: list[Floats] = []
        self._last = -1

    def computes(self, index: int) -> bool:
        """As `VelocityRule`."""
        return index < self.first or (index - self.first + 1 - self.gap) % self.interval == 0

    def computed(self, index: int, velocity: Floats) -> None:
        """As `VelocityRule`."""
        factors, apart = [velocity], np.float32(index - self._last)
        for before in self._factors[: self.order] if self._last >= 0 else ():
            factors.append((factors[-1] - before) / apart)
        self._factors, self._last = factors, index

    def forecast(self, index: int) -> Floats:
        """As `VelocityRule`."""
        ahead = index - self._last
        terms = (
            factor * np.float32(ahead**power / math.factorial(power))
            for power, factor in enumerate(self._factors)
        )
        total: Floats = np.sum([*terms], axis=0, dtype=np.float32)
        return total

    def state(self) -> dict[str, Floats]:
        """As `Rule`."""
        named = {f"factor_{i}": factor for i, factor in enumerate(self._factors)}
        return {**named, "last": np.full(1, self._last, np.float32)}

    def restore(self, state: dict[str, Floats]) -> None:
        """As `Rule`."""
        count = sum(name.startswith("factor_") for name in state)
        self._factors = [state[f"factor_{i}"] for i in range(count)]
        self._last = int(state["last"][0])
