"""Samplers against diffusers' schedulers, over whole runs of random velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.registry import SAMPLERS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPE = (1, 4, 2, 4, 4)
EULER = {
    "plain": ({}, {}),
    "shift": ({"shift": 3.0}, {}),
    "dynamic": ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    "linear": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.0}),
    "terminal": ({"shift": 2.0, "shift_terminal": 0.1}, {}),
    "inverted": ({"invert_sigmas": True}, {}),
    "karras": ({"use_karras_sigmas": True}, {}),
}
UNIPC = {
    "wan_480": ({"flow_shift": 3.0}, {}),
    "wan_720": ({"flow_shift": 5.0}, {}),
    "plain": ({"flow_shift": 1.0}, {}),
}
CASES = [("euler", name) for name in EULER] + [("unipc", name) for name in UNIPC]


def scheduler(sampler: str, name: str, steps: int) -> Any:
    """diffusers' scheduler of a case, at its first step."""
    if sampler == "euler":
        config, options = EULER[name]
        made: Any = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    else:
        config, options = UNIPC[name]
        config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, **config}
        made = diffusers.UniPCMultistepScheduler(**config)
    made.set_timesteps(steps, **options)
    return made


def tables(sampler: str, own: Any) -> Schedule:
    """The constants that a manifest has of a scheduler."""
    return Schedule(sampler, tuple(own.timesteps.tolist()), tuple(own.sigmas.tolist()))


@pytest.mark.parametrize("steps", [4, 15, 30, 50])
@pytest.mark.parametrize(("sampler", "name"), CASES)
def test_equals_diffusers(sampler: str, name: str, steps: int) -> None:
    own = scheduler(sampler, name, steps)
    ours = SAMPLERS.load(sampler).Sampler(tables(sampler, own))
    random = np.random.default_rng(steps)
    latents = expected = random.standard_normal(SHAPE, dtype=np.float32)
    for index, time in enumerate(own.timesteps):
        velocity = random.standard_normal(SHAPE, dtype=np.float32)
        latents = ours.step(index, velocity, latents)
        given = own.step(torch.from_numpy(velocity), time, torch.from_numpy(np.array(expected)))
        expected = given.prev_sample.numpy()
        assert latents.dtype == np.float32
        assert np.abs(latents - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("sampler", "name"), CASES)
def test_leap_is_the_truncated_schedule(sampler: str, name: str) -> None:
    """After n evaluations the rest of the way: the scheduler's own with its table cut off."""
    own = scheduler(sampler, name, 15)
    ours = SAMPLERS.load(sampler).Sampler(tables(sampler, own))
    random = np.random.default_rng(0)
    velocity, latents = (random.standard_normal(SHAPE, dtype=np.float32) for _ in range(2))
    given = ours.leap(6, velocity, latents)
    euler = diffusers.FlowMatchEulerDiscreteScheduler()
    euler.set_timesteps(15)
    euler.timesteps = own.timesteps[6:7].float()
    euler.sigmas = torch.cat((own.sigmas[6:7], own.sigmas[-1:]))
    expected = euler.step(*map(torch.as_tensor, (velocity, euler.timesteps[0], latents)))
    assert given == pytest.approx(expected.prev_sample.numpy(), abs=1e-5)
    if sampler == "unipc":  # its own prediction of the clean latents
        own._step_index = 6
        both = torch.from_numpy(velocity), torch.from_numpy(latents)
        clean = own.convert_model_output(both[0], sample=both[1])
        assert given == pytest.approx(clean.numpy(), abs=1e-5)


@pytest.mark.parametrize(("sampler", "name"), [("euler", "shift"), ("unipc", "wan_480")])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_goes_on_from_its_state(sampler: str, name: str, steps: int) -> None:
    """Stopped after any step, a fresh sampler makes the same latents, to the bit."""
    schedule = tables(sampler, scheduler(sampler, name, steps))
    make = SAMPLERS.load(sampler).Sampler
    random = np.random.default_rng(3)
    velocities = random.standard_normal((steps, *SHAPE), dtype=np.float32)
    latents = [random.standard_normal(SHAPE, dtype=np.float32)]
    whole, states = make(schedule), []
    for index in range(steps):
        states.append({n: np.array(a) for n, a in whole.state().items()})
        latents.append(whole.step(index, velocities[index], latents[-1]))
    for begin in range(steps):
        rest, now = make(schedule), latents[begin]
        rest.restore(begin, states[begin])
        for index in range(begin, steps):
            now = rest.step(index, velocities[index], now)
        assert np.array_equal(now, latents[-1])
