"""Samplers against diffusers' schedulers over whole runs, interrupted at each step."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.registry import SAMPLERS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CASES = [
    ("euler", "FlowMatchEulerDiscreteScheduler", {"shift": 5.0}),
    ("euler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
    ("euler", "FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ("unipc", "UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    ("unipc", "UniPCMultistepScheduler", {**FLOW, "flow_shift": 8.0}),
]


def schedule(scheduler) -> Schedule:
    times, sigmas = scheduler.timesteps, scheduler.sigmas
    return Schedule("", tuple(map(float, times)), tuple(map(float, sigmas)))


@pytest.mark.parametrize("steps", [1, 2, 4, 15, 50])
@pytest.mark.parametrize(("name", "kind", "options"), CASES)
def test_a_run_is_that_of_the_scheduler(name, kind, options, steps):
    if steps == 1 and "shift_terminal" in options:
        pytest.skip("diffusers divides by zero: one step has no sigma between the first and last")
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(steps)
    rng, load = np.random.default_rng(0), SAMPLERS.load(name).Sampler
    matrix = rng.standard_normal((40, 40)).astype(np.float32) / 8
    latents = rng.standard_normal((1, 40)).astype(np.float32)
    expected, state = torch.from_numpy(latents), {}
    for index, time in enumerate(scheduler.timesteps):
        velocity = torch.tanh(expected @ torch.from_numpy(matrix)) + 0.3 * expected
        expected = scheduler.step(velocity, time, expected, return_dict=False)[0]
        sampler = load(schedule(scheduler))
        sampler.restore(index, state)
        own = np.tanh(latents @ matrix) + np.float32(0.3) * latents
        latents = sampler.step(index, own, latents)
        state = {key: array.copy() for key, array in sampler.state().items()}
        limit = 1e-5 * float(expected.abs().max())
        assert np.abs(latents - expected.numpy()).max() <= limit


@pytest.mark.parametrize(("name", "kind", "options"), CASES)
def test_a_leap_ends_where_a_schedule_of_fewer_steps_would(name, kind, options):
    """A table that is cut after step n and ends with the last sigma has this last step."""
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(8)
    whole = schedule(scheduler)
    velocity, latents = np.random.default_rng(1).standard_normal((2, 1, 12)).astype(np.float32)
    leapt = SAMPLERS.load(name).Sampler(whole).leap(3, velocity, latents)
    change = np.float32(whole.sigmas[-1]) - np.float32(whole.sigmas[3])
    assert np.allclose(leapt, latents + change * velocity, atol=1e-6)
