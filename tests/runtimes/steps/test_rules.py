"""Rules between calls of the denoiser: against published decisions, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.errors import RecipeError
from edgevlm.recipe import MethodChoice
from edgevlm.registry import RULES
from edgevlm.runtimes.steps.rules import BlocksRule
from edgevlm.runtimes.steps.run import Steps, make_rules

VECTORS = Path(__file__).parents[4] / "shared" / "vectors"


def vectors(name):
    path = VECTORS / f"{name}.npz"
    if not path.is_file():
        pytest.skip("../shared/vectors is absent")
    file = np.load(path)
    cases = sorted({key.split("_")[0] for key in file.files})
    return [
        {key.split("_", 1)[1]: file[key] for key in file.files if key.startswith(f"{case}_")}
        for case in cases
    ]


def rules(*texts, steps=10):
    return make_rules([MethodChoice.parse(text) for text in texts], steps)


class Replayed:
    """A denoiser whose velocities are given."""

    def __init__(self, velocities):
        self.velocities_, self.calls = list(velocities), 0

    def velocities(self, latents, timestep, texts, gate):
        self.calls += 1
        return [self.velocities_[self.calls - 1]] * texts


def test_the_leap_waits_as_published():
    for case in vectors("odsora_lpl"):
        times = case["in_timesteps"]
        rule = RULES.load("leap").Rule(
            least=int(case["param_minimum_steps"]),
            tolerance=float(case["param_cos_tolerance"]),
            patience=int(case["param_patience"]),
            rows=1,
        )
        # The velocity points from noise to data there, and time is what is left.
        schedule = Schedule("euler", tuple(map(float, times)), (*map(float, times / 1000), 0.0))
        steps = Steps(schedule, 1.0, [rule])
        denoiser = Replayed(-case["in_guided_velocity"])
        ran = list(steps.run(case["in_z0"], denoiser))
        assert len(ran) == int(case["out_num_evaluations"])
        leapt = int(case["out_leap_step"])
        assert [step.index for step in ran if step.leaps] == ([leapt] if leapt >= 0 else [])
        result = case["out_latents"][-1]
        assert np.allclose(ran[-1].latents, result, atol=1e-4 * np.abs(result).max())


def test_fixed_intervals_are_the_published_ones():
    for case in vectors("systems/step_forecast"):
        steps, features = int(case["param_steps"]), case["in_features"]
        rule = RULES.load("reuse").Rule(interval=int(case["param_interval"]))
        rule.begin(steps)
        for index, expected in enumerate(case["out_fora_output"]):
            assert rule.computes(index) == case["out_fora_full"][index]
            if rule.computes(index):
                rule.computed(index, features[index])
            assert np.array_equal(rule.forecast(index), expected)


def test_forecasts_are_those_of_diffusers_taylorseer():
    for case in vectors("systems/step_forecast"):
        features, before = case["in_features"], int(case["param_diffusers_disable_before"])
        rule = RULES.load("taylor").Rule(
            interval=int(case["param_interval"]), order=int(case["param_max_order"]), first=before
        )
        rule.begin(int(case["param_steps"]))
        for index, expected in enumerate(case["out_diffusers_output"]):
            if case["out_diffusers_full"][index]:
                rule.computed(index, features[index])
            limit = 1e-4 * np.abs(expected).max()
            assert np.abs(rule.forecast(index) - expected).max() <= limit


def test_what_adds_up_decides_as_teacache_does():
    for case in vectors("systems/step_cache_ltx"):
        rule = RULES.load("teacache").Rule(
            threshold=float(case["param_tea_threshold"]),
            c4=21.4700694, c3=-12.8016453, c2=2.31279151, c1=0.792487521, c0=0.00969274326,
        )  # fmt: skip
        rule.begin(int(case["param_steps"]))
        runs = [rule.runs(i, 0, x) for i, x in enumerate(case["out_tea_modulated_input"])]
        assert runs == case["out_tea_computed"].tolist()


def test_the_first_block_decides_by_the_last_computed_step():
    rule = RULES.load("first-block").Rule(threshold=0.1)
    rule.begin(5)
    values = [1.0, 1.05, 1.11, 1.15, 1.3]  # 1.05 and 1.15 are within a tenth of 1 and of 1.11
    runs = [rule.runs(i, 0, np.full(3, x, np.float32)) for i, x in enumerate(values)]
    assert runs == [True, False, True, False, True]
    assert rule.runs(0, 1, np.ones(3, np.float32))  # the other text decides for itself


def test_guidance_ends_where_it_is_told():
    (rule,) = rules("guidance:stop=3")
    steps = Steps(Schedule("euler", (9.0,) * 5, (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)), 4.0, [rule])
    denoiser = Replayed([np.ones((1, 2), np.float32)] * 5)
    assert [s.texts for s in steps.run(np.zeros((1, 2), np.float32), denoiser)] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("name", RULES.names())
def test_a_rule_says_where_it_is_from_and_refuses_options_of_no_use(name):
    module = RULES.load(name)
    assert all(getattr(module, text) for text in ("SUMMARY", "SOURCE", "DIFFERS"))
    first = fields(module.Rule)[0].name
    with pytest.raises(RecipeError, match=f"rule '{name}': .*-5"):
        rules(f"{name}:{first}=-5")
    with pytest.raises(RecipeError, match=f"unknown option of rule '{name}' 'x'"):
        rules(f"{name}:x=1")


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (("taylor", "reuse"), "both are of role 'velocity'"),
        (("taylor", "teacache"), "both spare the layers' work"),
        (("leap", "first-block"), "would take forecasts for settled"),
    ],
)
def test_rules_that_do_not_go_together(pair, why):
    with pytest.raises(RecipeError, match=why):
        rules(*pair)
    assert rules("leap:after=4", "taylor", "guidance:stop=2")


def test_a_gate_runs_the_layers_until_it_knows_what_they_add():
    class Never(BlocksRule):
        def runs(self, index, branch, signal):
            return False

    from edgevlm.runtimes.steps.run import Gate

    gate, signal = Gate(Never()), np.ones(2, np.float32)
    assert gate.runs(0, signal)
    gate.ran(0, np.float32([1, 2]), np.float32([5, 5]))
    assert not gate.runs(0, signal)
    assert gate.skip(0, np.float32([0, 1])).tolist() == [4, 4]
