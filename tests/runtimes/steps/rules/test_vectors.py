"""Rules against what their original implementations recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.registry import RULES, SAMPLERS
from edgevlm.runtimes.steps.rules import VelocityRule

Vectors = Callable[[str], Iterator[dict[str, Any]]]
MakeSchedule = Callable[..., Schedule]
# Of TeaCache's code for LTX-Video, the constant first.
LTX = (0.00969274326, 0.792487521, 2.31279151, -12.8016453, 21.4700694)


def rule(name: str, schedule: Schedule, **options: float) -> Any:
    """A rule that has begun."""
    made = RULES.load(name).Rule(**options)
    made.begin(schedule)
    return made


def test_leap_of_open_sora(vectors: Vectors) -> None:
    """Velocities replayed: the leap's step, the size of each step and all latents are equal."""
    for case in vectors("odsora_lpl"):
        times, velocities = case["in_timesteps"], case["in_guided_velocity"]
        sigmas = (*map(float, times / 1000), 0.0)
        schedule = Schedule("euler", tuple(map(float, times)), sigmas)
        sampler = SAMPLERS.load("euler").Sampler(schedule)
        leap = rule(
            "leap", schedule, rows=1, least=int(case["param_minimum_steps"]),
            tolerance=float(case["param_cos_tolerance"]), patience=int(case["param_patience"]),
        )  # fmt: skip
        latents, leapt = case["in_z0"], -1
        for index, velocity in enumerate(velocities):
            velocity = -velocity  # Open-Sora's is x - noise
            leaps = leap.leaps(index, velocity)
            latents = (sampler.leap if leaps else sampler.step)(index, velocity, latents)
            expected = case["out_latents"][index + 1]
            assert np.abs(latents - expected).max() <= 1e-5 * np.abs(expected).max()
            if leaps:
                leapt = index
                assert index + 1 == case["out_num_evaluations"]
        assert leapt == case["out_leap_step"]


def test_timesteps_of_open_sora(vectors: Vectors) -> None:
    """Its transform is flow matching's shift by sqrt(pixels / 512^2) sqrt(frames // 17 * 5)."""
    diffusers = pytest.importorskip("diffusers")
    for case in vectors("odsora_timestep_transform"):
        pixels = case["param_height"] * case["param_width"] / 512**2
        frames = int(case["param_num_frames"])
        shift = float(np.sqrt(pixels * (frames // 17 * 5 if frames > 1 else 1)))
        own = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        own.set_timesteps(sigmas=(case["in_t"] / 1000).tolist())
        assert own.timesteps.numpy() == pytest.approx(case["out_t_transformed"], rel=1e-5)


@pytest.mark.parametrize("choice", ["authors", "diffusers", "fora"])
def test_forecasts(vectors: Vectors, schedule: MakeSchedule, choice: str) -> None:
    """Which steps are computed, and what the others are given, of features of one module."""
    for case in vectors("systems/step_forecast"):
        steps, features = int(case["param_steps"]), case["in_features"]
        options = {"interval": int(case["param_interval"])}
        if choice != "fora":
            options["order"] = int(case["param_max_order"])
            first = "first_enhance" if choice == "authors" else "diffusers_disable_before"
            options["first"] = int(case[f"param_{first}"])
        if choice == "diffusers":
            options["gap"] = 2
        name = "reuse" if choice == "fora" else "taylor"
        forecast: VelocityRule = rule(name, schedule(steps), **options)
        computed, given = [], []
        for index, feature in enumerate(features):
            computed.append(forecast.computes(index))
            if computed[-1]:
                forecast.computed(index, feature)
            given.append(feature if computed[-1] else forecast.forecast(index))
        assert computed == case[f"out_{choice}_full"].tolist()
        expected = case[f"out_{choice}_output"]
        assert np.stack(given) == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))


def test_teacache_of_ltx(vectors: Vectors, schedule: MakeSchedule) -> None:
    for case in vectors("systems/step_cache_ltx"):
        steps = int(case["param_steps"])
        options = {f"c{power}": value for power, value in enumerate(LTX)}
        cache = rule(
            "teacache", schedule(steps), threshold=float(case["param_tea_threshold"]), **options
        )
        computed, sums = [], []
        for index, signal in enumerate(case["out_tea_modulated_input"]):
            computed.append(cache.runs(index, 0, signal[None]))
            sums.append(float(cache.state()["sum_0"][0]))
        assert computed == case["out_tea_computed"].tolist()
        assert sums == pytest.approx(case["out_tea_accumulated"], rel=1e-4, abs=1e-6)


def test_magcache_of_ltx(vectors: Vectors, schedule: MakeSchedule) -> None:
    for case in vectors("systems/step_cache_ltx"):
        magnitudes = tuple(map(float, case["out_mag_ratios"]))
        cache = rule(
            "magcache",
            replace(schedule(int(case["param_steps"])), magnitudes=magnitudes),
            threshold=float(case["param_mag_threshold"]),
            longest=int(case["param_mag_max_skip_steps"]),
            retention=float(case["param_mag_retention_ratio"]),
        )
        signal = np.zeros((1, 1), np.float32)
        runs = [cache.runs(index, 0, signal) for index in range(len(magnitudes))]
        assert runs == cache.computed == case["out_mag_computed"].tolist()
