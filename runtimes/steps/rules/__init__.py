"""Rules that spare calls of the denoiser, a file a rule, found by name.

A rule has one role; of each role there is one rule at most:

    leap      ends the schedule early: the rest of the way along one velocity
    velocity  some steps have a velocity that is forecast; the denoiser is not called
    blocks    some steps skip the denoiser's layers: what they added at an earlier step is added
    guidance  some steps run the text alone, without the negative text

A skipped block is not loaded either. Each file has a class `Rule`, whose fields are its options,
and SUMMARY, SOURCE, DIFFERS. `state` and `restore` let a run go on where it was interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.kinds.shared.video import Schedule

Floats = NDArray[np.float32]


@dataclass
class Rule(ABC):
    """What all rules have; `begin` comes before a run.

    Attributes:
        role: `leap`, `velocity`, `blocks` or `guidance`.
        reads: Whether it decides by what the denoiser computes, so that no run is known before.
        measured: Whether it needs `Schedule.magnitudes`, which an export measures for it.
    """

    role: ClassVar[str]
    reads: ClassVar[bool] = False
    measured: ClassVar[bool] = False

    def begin(self, schedule: Schedule) -> None:  # noqa: B027 - some forget nothing
        """Forget all runs; one of this schedule begins.

        Raises:
            ValueError: If the options are of no use for it.
        """

    def state(self) -> dict[str, Floats]:
        """What it remembers of a run, by name."""
        return {}

    def restore(self, state: dict[str, Floats]) -> None:  # noqa: B027 - some remember nothing
        """Go on with what `state` gave."""


class LeapRule(Rule):
    """Ends the schedule early."""

    role = "leap"

    @abstractmethod
    def leaps(self, index: int, velocity: Floats) -> bool:
        """Whether step `index`, whose guided velocity this is, is the last one."""


class VelocityRule(Rule):
    """Forecasts velocities."""

    role = "velocity"

    @abstractmethod
    def computes(self, index: int) -> bool:
        """Whether the denoiser is called at a step."""

    @abstractmethod
    def computed(self, index: int, velocity: Floats) -> None:
        """Remember a guided velocity that was computed."""

    @abstractmethod
    def forecast(self, index: int) -> Floats:
        """The guided velocity of a step that is not computed."""


class LastVelocityRule(VelocityRule):
    """Gives steps that are not computed the velocity of the last one that was.

    A rule of this form sets `_velocity` to None when a run begins.
    """

    _velocity: Floats | None

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


class BlocksRule(Rule):
    """Skips the denoiser's layers.

    Attributes:
        first: Blocks of layers that run in any case, before it decides.
    """

    role = "blocks"
    first: ClassVar[int] = 0

    @abstractmethod
    def runs(self, index: int, branch: int, signal: Floats) -> bool:
        """Whether the layers run.

        Args:
            index: The step.
            branch: 0 for the text, 1 for the negative text.
            signal: What the layers take of the timestep (`modulation`), or with `first` what the
                first block adds to the hidden state.
        """


class GuidanceRule(Rule):
    """Leaves guidance out."""

    role = "guidance"

    @abstractmethod
    def guides(self, index: int) -> bool:
        """Whether the negative text is run at a step."""


def moved(now: Floats, before: Floats) -> float:
    """Relative change: mean |now - before| / mean |before|."""
    return float(np.abs(now - before).mean() / np.abs(before).mean())
