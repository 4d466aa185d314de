"""What makes the next latents of a velocity, a file a sampler.

Each has a class `Sampler` over a `Schedule`: `step` and `leap`, and `state`, what it remembers of
the steps before, so that a run can go on where it was interrupted. Velocities are those of flow
matching (arXiv 2210.02747): latents are sigma * noise + (1 - sigma) * x, and v = noise - x.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.kinds.shared.video import Schedule

Floats = NDArray[np.float32]


class Sampler(Protocol):
    """One run over a schedule; steps come in order."""

    def __init__(self, schedule: Schedule) -> None: ...

    def step(self, index: int, velocity: Floats, latents: Floats) -> Floats:
        """The latents after step `index`, from those before it; of any shape, f32."""

    def leap(self, index: int, velocity: Floats, latents: Floats) -> Floats:
        """The latents at the end of the schedule, along the velocity of step `index`.

        On-device Sora, arXiv 2502.04363, equation 5.
        """

    def state(self) -> dict[str, Floats]:
        """Arrays that a later step reads, by name."""

    def restore(self, index: int, state: dict[str, Floats]) -> None:
        """Go on before step `index` with what `state` gave."""
