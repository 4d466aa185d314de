"""Step leap: after n steps the rest of the way along the last velocity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.rules import Floats, LeapRule

SUMMARY = "After n steps one leap along the last velocity to the end of the schedule."
SOURCE = "On-device Sora, arXiv 2502.04363, equation 5; the trigger of section 4.1"
DIFFERS = (
    "the trigger compares the whole velocity (rows=1: the rows of the first frame of the first"
    " channel, as published code does) and forgets between runs"
)


@dataclass
class Rule(LeapRule):
    """Leaps at a fixed step, or when the direction of the velocity has settled.

    Args:
        after: Evaluations, of which the last one leaps; 0 waits until the direction has settled.
        least: Steps before one may leap, where it waits.
        tolerance: By how much the cosine of two velocities must exceed the best so far to count.
        patience: Steps in a row without such a gain, after which it leaps.
        rows: Whether the mean cosine of rows of one frame is compared instead.
    """

    after: int = 0
    least: int = 14
    tolerance: float = 1e-3
    patience: int = 3
    rows: int = 0

    @property
    def reads(self) -> bool:  # type: ignore[override]
        """Whether it waits."""
        return self.after == 0

    def begin(self, schedule: Schedule) -> None:
        """As `Rule`."""
        steps = schedule.steps
        if not 0 <= self.after <= steps:
            raise ValueError(f"after is {self.after}, of {steps} steps")
        if self.least < 1 or self.patience < 1 or not 0 <= self.tolerance <= 1:
            raise ValueError("least and patience are 1 or more, tolerance is from 0 to 1")
        self._best, self._left = 0.0, self.patience
        self._before: Floats | None = None

    def leaps(self, index: int, velocity: Floats) -> bool:
        """As `LeapRule`."""
        if self.after:
            return index + 1 == self.after
        before, self._before = self._before, velocity
        if index < self.least or before is None:
            return False
        likeness = self._likeness(velocity, before)
        if likeness > self._best + self.tolerance:
            self._best, self._left = likeness, self.patience
        else:
            self._left -= 1
        return self._left == 0

    def state(self) -> dict[str, Floats]:
        """As `Rule`."""
        counts = np.array([self._best, self._left], np.float32)
        return {"counts": counts} | ({} if self._before is None else {"before": self._before})

    def restore(self, state: dict[str, Floats]) -> None:
        """As `Rule`."""
        self._best, self._left = float(state["counts"][0]), int(state["counts"][1])
        self._before = state.get("before")

    def _likeness(self, now: Floats, before: Floats) -> float:
        """Cosine of two velocities [1, C, F, h, w]."""
        if self.rows:
            now, before = now[0, 0, 0], before[0, 0, 0]
        else:
            now, before = now.reshape(1, -1), before.reshape(1, -1)
        product = (now * before).sum(-1)
        lengths = np.linalg.norm(now, axis=-1) * np.linalg.norm(before, axis=-1)
        return float((product / np.maximum(lengths, np.float32(1e-8))).mean())
