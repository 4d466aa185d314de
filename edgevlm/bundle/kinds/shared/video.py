"""What a diffusion model needs beside its denoiser: the steps, and the video decoder's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from edgevlm.bundle.checks import expect

MOST_STEPS = 1000


@dataclass(frozen=True)
class VaePart:
    """What a part of the video decoder gives, and what it keeps from latent frame to latent frame.

    Attributes:
        first: Channels, frames, height and width that it gives of the first latent frame.
        next: The same of a further one.
        caches: Shapes of what it keeps: channels, frames, height, width.
    """

    first: tuple[int, int, int, int]
    next: tuple[int, int, int, int]
    caches: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True)
class VaeShape:
    """Sizes of the video decoder.

    Attributes:
        tile: Height and width of a tile of the latents.
        stride: Latents from the beginning of a tile to that of the next one, down and across.
        scale: Pixels of a latent's side.
        parts: Its parts.
    """

    tile: tuple[int, int]
    stride: tuple[int, int]
    scale: int
    parts: tuple[VaePart, ...]


@dataclass(frozen=True)
class Schedule:
    """The steps from noise to latents (flow matching, arXiv 2210.02747).

    Attributes:
        sampler: What makes the next latents of a velocity, a file of `runtimes/steps/samplers`.
        timesteps: What the denoiser is told of each step.
        sigmas: Share of noise before each step, and after the last.
        magnitudes: How many times larger what the layers add is at each step than at the one
            before, measured where a rule asks for it at export; empty where none does.
    """

    sampler: str
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    magnitudes: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of a video."""
        return len(self.timesteps)


def check_schedule(schedule: Schedule) -> None:
    """Refuse a schedule whose tables do not fit each other, or that never reaches the latents."""
    steps, sigmas = schedule.steps, schedule.sigmas
    expect(1 <= steps <= MOST_STEPS, f"host.schedule has {steps} steps, expected 1 to {MOST_STEPS}")
    fits = len(sigmas) == steps + 1
    expect(fits, f"host.schedule has {len(sigmas)} sigmas, expected {steps + 1}")
    good = all(0 <= sigma <= 1 for sigma in sigmas)
    expect(good, "host.schedule.sigmas has one outside 0 to 1")
    pairs = [*pairwise(sigmas)]
    good = all(a > b for a, b in pairs) or all(a < b for a, b in pairs)
    expect(good, "host.schedule.sigmas goes up and down, or stays; expected one direction")
    good = all(0 <= time <= 1e6 for time in schedule.timesteps)
    expect(good, "host.schedule.timesteps has one outside 0 to 1e6")
    magnitudes = schedule.magnitudes
    fits = len(magnitudes) in (0, steps)
    expect(fits, f"host.schedule has {len(magnitudes)} magnitudes, expected {steps} or none")
    good = all(0 <= each <= 1e6 for each in magnitudes)
    expect(good, "host.schedule.magnitudes has one outside 0 to 1e6")
