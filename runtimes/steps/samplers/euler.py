"""Euler's method: the latents go along the velocity as far as sigma goes.

Equal to diffusers' FlowMatchEulerDiscreteScheduler without noise in between.
"""

from __future__ import annotations

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.samplers import Floats


class Sampler:
    """See `edgevlm.runtimes.steps.samplers.Sampler`."""

    def __init__(self, schedule: Schedule) -> None:
        self.sigmas = np.asarray(schedule.sigmas, np.float32)

    def step(self, index: int, velocity: Floats, latents: Floats) -> Floats:
        """The latents after a step."""
        change = self.sigmas[index + 1] - self.sigmas[index]
        return np.asarray(latents + change * velocity, np.float32)

    def leap(self, index: int, velocity: Floats, latents: Floats) -> Floats:
        """The latents at the end."""
        change = self.sigmas[-1] - self.sigmas[index]
        return np.asarray(latents + change * velocity, np.float32)

    def state(self) -> dict[str, Floats]:
        """It remembers nothing."""
        return {}

    def restore(self, index: int, state: dict[str, Floats]) -> None:
        """It remembers nothing."""
