"""Rules against diffusers' own hooks, on a tiny Wan denoiser under guidance."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.recipe import MethodChoice
from edgevlm.registry import SAMPLERS
from edgevlm.runtimes.steps.run import COMPUTED, FORECAST, SKIPPED, Steps, make_rules

torch = pytest.importorskip("torch")
hooks = pytest.importorskip("diffusers.hooks")

from edgevlm.models.pipelines.magnitudes import PartsDenoiser, _Measuring  # noqa: E402 - need torch

STEPS, GUIDANCE = 12, 4.0
Own = Callable[[Callable[[Any], None], Schedule], tuple[Any, list[bool]]]


@pytest.fixture
def own(make_wan: Callable[[], Any], texts: list[Any], begun: Any) -> Own:
    """A run of diffusers' denoiser with a hook: latents, and whether layers ran for both texts."""

    def run(hook: Callable[[Any], None], schedule: Schedule) -> tuple[Any, list[bool]]:
        model, ran, calls = make_wan(), list[bool](), list[int]()
        hook(model)
        model.blocks[-1].ffn.register_forward_pre_hook(lambda *_: calls.append(1))
        sampler, latents = SAMPLERS.load(schedule.sampler).Sampler(schedule), begun
        for index, time in enumerate(schedule.timesteps):
            velocities = []
            calls.clear()
            for name, text in zip(("cond", "uncond"), texts, strict=True):
                with model.cache_context(name), torch.no_grad():
                    given = torch.from_numpy(latents), torch.tensor([time]), text
                    velocities.append(model(*given, return_dict=False)[0].numpy())
            ran.append(len(calls) == 2)  # each text decides for itself
            text, negative = velocities
            guided = negative + np.float32(GUIDANCE) * (text - negative)
            latents = sampler.step(index, guided, latents)
        return latents, ran

    return run


@pytest.fixture
def ours(parts: list[Any], texts: list[Any], begun: Any) -> Callable[..., tuple[Any, list[str]]]:
    """A run of ours with a rule: the latents, and how each step was made."""

    def run(rule: str, schedule: Schedule) -> tuple[Any, list[str]]:
        rules = make_rules([MethodChoice.parse(rule)], schedule)
        each = [*Steps(schedule, GUIDANCE, rules).run(begun, PartsDenoiser(parts, texts))]
        return each[-1].latents, [step.how for step in each]

    return run


def close(actual: Any, expected: Any) -> bool:
    return bool(np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_first_block_cache(sampler: str, own: Own, ours: Any, schedule: Any) -> None:
    table = schedule(STEPS, sampler)
    config = hooks.FirstBlockCacheConfig(threshold=0.15)
    expected, ran = own(lambda model: hooks.apply_first_block_cache(model, config), table)
    latents, how = ours("first-block:threshold=0.15", table)
    assert [each == COMPUTED for each in how] == ran
    assert 2 <= how.count(SKIPPED) <= STEPS - 3
    assert close(latents, expected)


def test_magcache(
    own: Own, ours: Any, schedule: Any, parts: list[Any], texts: list[Any], begun: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Magnitudes as diffusers calibrates, and with them the same steps and latents."""
    table = schedule(STEPS)
    config = hooks.MagCacheConfig(calibrate=True, num_inference_steps=STEPS)
    own(lambda model: hooks.apply_mag_cache(model, config), table)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1")]
    steps = Steps(table, GUIDANCE)
    steps.gate = measuring = _Measuring()
    assert len([*steps.run(begun, PartsDenoiser(parts, texts))]) == STEPS
    assert measuring.found == pytest.approx(ast.literal_eval(printed[0]), rel=1e-4)

    magnitudes = tuple(measuring.found)
    config = hooks.MagCacheConfig(
        threshold=0.12, max_skip_steps=2, num_inference_steps=STEPS, mag_ratios=[*magnitudes]
    )
    expected, ran = own(lambda model: hooks.apply_mag_cache(model, config), table)
    latents, how = ours("magcache:threshold=0.12,longest=2", schedule(STEPS, magnitudes=magnitudes))
    assert [each == COMPUTED for each in how] == ran
    assert 2 <= how.count(SKIPPED) <= STEPS - 3
    assert close(latents, expected)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_seer(order: int, own: Own, ours: Any, schedule: Any) -> None:
    """Its forecast of the last matrix is ours of the velocity, which is linear in it."""
    table = schedule(STEPS)
    config = hooks.TaylorSeerCacheConfig(
        cache_interval=3, max_order=order, taylor_factors_dtype=torch.float32,
        cache_identifiers=["proj_out"],
    )  # fmt: skip
    expected, _ = own(lambda model: hooks.apply_taylorseer_cache(model, config), table)
    latents, how = ours(f"taylor:interval=3,order={order},first=3,gap=2", table)
    assert how.count(FORECAST) == 6
    assert close(latents, expected)
