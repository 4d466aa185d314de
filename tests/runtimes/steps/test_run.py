"""The driver: what a step does, going on from a saved state, rules that exclude each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevlm.errors import InputError, RecipeError
from edgevlm.recipe import MethodChoice
from edgevlm.runtimes.steps.run import COMPUTED, FORECAST, SKIPPED, Steps, make_rules

pytest.importorskip("torch")

from edgevlm.models.pipelines.magnitudes import PartsDenoiser

STEPS, GUIDANCE = 8, 3.0
MAGNITUDES = (1.0, 1.02, 0.99, 1.01, 0.97, 1.03, 0.98, 1.0)
RULES = (
    (), ("leap:after=5",), ("leap:after=0,least=3,patience=1,tolerance=0.5",),
    ("leap:after=0,least=3,patience=2,tolerance=0.5,rows=1",), ("taylor:interval=2,first=2",),
    ("taylor:interval=3,order=2,gap=2",), ("reuse:interval=3", "guidance:start=0,stop=4"),
    ("random:calls=4,seed=3",), ("teacache:threshold=0.3",), ("first-block:threshold=0.3",),
    ("magcache:threshold=0.2", "guidance:start=2,stop=6"),
    ("teacache:threshold=0.3", "leap:after=7"),
)  # fmt: skip


def choices(names: tuple[str, ...]) -> list[MethodChoice]:
    return [MethodChoice.parse(name) for name in names]


@pytest.mark.parametrize("names", RULES, ids="+".join)
@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_goes_on_after_any_step(
    names: tuple[str, ...], sampler: str, schedule: Any, parts: Any, texts: Any, begun: Any
) -> None:
    """A run that is stopped after a step and restored elsewhere makes the same latents."""
    table, denoiser = schedule(STEPS, sampler, MAGNITUDES), PartsDenoiser(parts, texts)
    whole = Steps(table, GUIDANCE, make_rules(choices(names), table))
    each, states = [], []
    for step in whole.run(begun, denoiser):
        each.append(step)
        states.append({name: np.array(array) for name, array in whole.state().items()})
        assert all(array.dtype == np.float32 for array in states[-1].values())
    for done in range(1, len(each) + 1):
        rest = Steps(table, GUIDANCE, make_rules(choices(names), table))
        rest.restore(done, states[done - 1])
        again = [*rest.run(each[done - 1].latents, denoiser)]
        assert [s.how for s in again] == [s.how for s in each[done:]]
        if again:
            assert np.array_equal(again[-1].latents, each[-1].latents)


@pytest.mark.parametrize(
    ("names", "how"),
    [
        ((), [COMPUTED] * 8),
        (("leap:after=5",), [COMPUTED] * 5),
        (("reuse:interval=4",), [COMPUTED, *[FORECAST] * 2, COMPUTED, *[FORECAST] * 3, COMPUTED]),
        (("magcache:threshold=0.06",), None),
    ],
)  # fmt: skip
def test_says_what_each_step_did(
    names: tuple[str, ...], how: list[str] | None, schedule: Any, parts: Any, texts: Any, begun: Any
) -> None:
    table = schedule(STEPS, magnitudes=MAGNITUDES)
    rules = make_rules(choices(names), table)
    each = [*Steps(table, GUIDANCE, rules).run(begun, PartsDenoiser(parts, texts))]
    if how is None:
        how = [COMPUTED if runs else SKIPPED for runs in rules[0].computed]  # type: ignore[attr-defined]
        assert SKIPPED in how
    assert [step.how for step in each] == how
    assert each[-1].leaps == (names == ("leap:after=5",))
    assert all(step.texts == (0 if step.how == FORECAST else 2) for step in each)


def test_guidance_stops(schedule: Any, parts: Any, texts: Any, begun: Any) -> None:
    table = schedule(4)
    rules = make_rules(choices(("guidance:start=1,stop=3",)), table)
    each = [*Steps(table, GUIDANCE, rules).run(begun, PartsDenoiser(parts, texts))]
    assert [step.texts for step in each] == [1, 2, 2, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("leap:after=3", "leap:after=4"), "rules 'leap' and 'leap' exclude each other: both are"),
        (("taylor", "reuse"), "both are of role 'velocity'"),
        (("taylor", "first-block"), "both spare the layers' work"),
        (("reuse", "leap:after=0,least=2"), "would take forecasts for settled"),
        (("leap:after=9",), "rule 'leap': after is 9, of 8 steps"),
        (("leap:afer=3",), "afer"),
        (("taylor:order=5",), "order 5 of 4 at most"),
        (("taylor:gap=4",), "gap is 4, expected 0 to 3"),
        (("teacache:threshold=-1",), "threshold is -1, expected 0 to 100"),
        (("reuse:interval=0",), "interval is 0, of 8 steps"),
        (("guidance:start=5,stop=2",), "start is 5 and stop 2"),
        (("random:calls=9",), "calls is 9, of 8 steps"),
        (("magcache",), "export it with --rule magcache"),
        (("nothing",), "nothing"),
    ],
)  # fmt: skip
def test_refused(names: tuple[str, ...], message: str, schedule: Any) -> None:
    with pytest.raises(RecipeError) as refusal:
        make_rules(choices(names), schedule(8))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("done", "state"),
    [
        (9, {"over": [0]}), (-1, {"over": [0]}), (2, {}), (2, {"over": []}), (2, {"over": [0]}),
        (2, {"over": [0], "blocks.layers_x": [0], "sampler.clean_0": [0], "sampler.clean_1": [0]}),
    ],
)  # fmt: skip
def test_damaged_states_are_refused(
    done: int, state: dict[str, list[float]], schedule: Any
) -> None:
    table = schedule(8, "unipc")
    steps = Steps(table, GUIDANCE, make_rules(choices(("first-block",)), table))
    with pytest.raises(InputError, match=r"damaged .* leave out --resume"):
        steps.restore(done, {n: np.array(value, np.float32) for n, value in state.items()})
