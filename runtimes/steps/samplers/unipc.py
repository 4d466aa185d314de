"""UniPC (arXiv 2302.04867), a predictor and a corrector of several steps, as Wan ships it.

Equal to diffusers' UniPCMultistepScheduler with predictions of the clean latents from velocities of
flow matching (`flow_prediction`, `predict_x0`), order 2, `bh2`, lower orders at both ends. With
alpha = 1 - sigma and lambda = log(alpha / sigma), h is the change of lambda over a step; numbers of
the tables are float32 as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.runtimes.steps.samplers import Floats

ORDER = 2


class Sampler:
    """See `edgevlm.runtimes.steps.samplers.Sampler`."""

    def __init__(self, schedule: Schedule) -> None:
        self.sigmas = np.asarray(schedule.sigmas, np.float32)
        with np.errstate(divide="ignore"):  # the last sigma is 0
            self.lambdas = np.log(1 - self.sigmas) - np.log(self.sigmas)
        self.steps = schedule.steps
        self._clean: list[Floats] = []  # predictions of the last steps, the newest last
        self._before: Floats | None = None  # latents from which the last step went
        self._order = 0  # of the last step

    def step(self, index: int, velocity: Floats, latents: Floats) -> Floats:
        """The latents after a step."""
        clean = latents - self.sigmas[index] * velocity
        if index:
            latents = self._corrected(index, clean)
        self._clean = [*self._clean, clean][-ORDER:]
        self._order = min(ORDER, self.steps - index, len(self._clean))
        self._before = latents
        return self._predicted(index, latents)

    def leap(self, index: int, velocity: Floats, latents: Floats) -> Floats:
        """The clean latents that the velocity tells of."""
        return _plain(latents + (self.sigmas[-1] - self.sigmas[index]) * velocity)

    def state(self) -> dict[str, Floats]:
        """Predictions of the last steps, the latents before the last one, and its order."""
        if self._before is None:
            return {}
        named = {f"clean_{i}": clean for i, clean in enumerate(self._clean)}
        order = np.full(1, self._order, np.float32)
        return {**named, "before": self._before, "order": order}

    def restore(self, index: int, state: dict[str, Floats]) -> None:
        """Go on before a step."""
        self._clean = [state[f"clean_{i}"] for i in range(min(index, ORDER))]
        self._before = state.get("before")
        self._order = int(state["order"][0]) if "order" in state else 0

    def _predicted(self, index: int, latents: Floats) -> Floats:
        """UniP: from the latents of a step to those of the next one."""
        change, factor = self._bounds(index)
        sigmas, alpha = self.sigmas, 1 - self.sigmas[index + 1]
        clean = self._clean[-1]
        moved = sigmas[index + 1] / sigmas[index] * latents - alpha * factor * clean
        if self._order == 1:
            return _plain(moved)
        return _plain(moved - alpha * factor * np.float32(0.5) * self._slope(index, change))

    def _corrected(self, index: int, clean: Floats) -> Floats:
        """UniC: the latents of a step once more, knowing what is predicted there."""
        change, factor = self._bounds(index - 1)
        sigmas, alpha = self.sigmas, 1 - self.sigmas[index]
        assert self._before is not None
        last = self._clean[-1]
        moved = sigmas[index] / sigmas[index - 1] * self._before - alpha * factor * last
        difference = clean - last
        if self._order == 1:
            return _plain(moved - alpha * factor * np.float32(0.5) * difference)
        weights, slope = self._weights(index - 1, change), self._slope(index - 1, change)
        return _plain(moved - alpha * factor * (weights[0] * slope + weights[1] * difference))

    def _bounds(self, index: int) -> tuple[np.float32, np.float32]:
        """h of a step, and e^-h - 1."""
        change = self.lambdas[index + 1] - self.lambdas[index]
        return change, np.expm1(-change)

    def _slope(self, index: int, change: np.float32) -> Floats:
        """How the prediction changes over a step, from the one before."""
        ratio = (self.lambdas[index - 1] - self.lambdas[index]) / change
        return _plain((self._clean[-2] - self._clean[-1]) / ratio)

    def _weights(self, index: int, change: np.float32) -> Floats:
        """The corrector's weights: two moments of the step (equation 9 of the paper)."""
        ratio = (self.lambdas[index - 1] - self.lambdas[index]) / change
        back = -change
        first = np.expm1(back) / back - 1
        second = first / back - np.float32(0.5)
        moments = np.array([first, 2 * second], np.float32) / np.expm1(back)
        rows = np.array([[1, 1], [ratio, 1]], np.float32)
        return np.asarray(np.linalg.solve(rows, moments), np.float32)


def _plain(latents: Any) -> Floats:
    return np.asarray(latents, np.float32)
