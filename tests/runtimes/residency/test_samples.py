"""Which of many equal functions are measured, and what the others get."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgevlm.bundle.functions import Function
from edgevlm.runtimes.residency import measure
from edgevlm.runtimes.residency.samples import samples_of, typical
from edgevlm.runtimes.residency.timings import FunctionTiming


def plan_of(sizes, flops=()):
    """Blocks of so many bytes of weights, with one function each."""
    function = Function("decode", (), (), 1)
    blocks = [
        SimpleNamespace(name=f"b{i}", weights_bytes=size, functions=(function,))
        for i, size in enumerate(sizes)
    ]
    for index in flops:
        blocks[index].functions = (replace(function, flops=2),)
    keys = [(block.name, "decode") for block in blocks]
    return SimpleNamespace(blocks=blocks, passes={"token": keys}), keys


def modes_of(plan, shared=()):
    """One load mode of each block, and a second one of some."""
    return {b.name: ("private", *["shared"] * (b.name in shared)) for b in plan.blocks}


def names(groups):
    return [[name for name, _ in some] for _, some in groups]


@pytest.mark.parametrize(
    ("sizes", "measured"),
    [
        pytest.param([10**6] * 30, [[f"b{i}" for i in range(30)]], id="small-ones-all"),
        pytest.param([10**8] * 9, [["b0", "b3", "b6"]], id="large-ones-three"),
        pytest.param([32 * 10**6] * 8, [["b0", "b2", "b4", "b6"]], id="128-MB"),
        pytest.param([10**8] * 2, [["b0", "b1"]], id="fewer-than-three"),
        pytest.param([0] * 4, [["b0", "b1", "b2", "b3"]], id="no-weights"),
        pytest.param([10**8] * 4 + [10**9], [["b0", "b1", "b2"], ["b4"]], id="another-size"),
    ],
)
def test_so_many_are_measured(sizes, measured):
    plan, keys = plan_of(sizes)
    assert names(samples_of(plan, keys, modes_of(plan))) == measured


def test_other_operations_are_another_group():
    plan, keys = plan_of([10**8] * 6, flops=[5])
    assert names(samples_of(plan, keys, modes_of(plan))) == [["b0", "b1", "b3"], ["b5"]]


def test_other_load_modes_are_another_group():
    plan, keys = plan_of([10**8] * 6)
    groups = samples_of(plan, keys, modes_of(plan, shared=("b0", "b1")))
    assert names(groups) == [["b0", "b1"], ["b2", "b3", "b4"]]


def test_groups_are_made_once_a_pass_for_all_load_modes(monkeypatch):
    plan, keys = plan_of([10**8] * 6)
    asked, grouped, rounds = [], [], {}
    engine = SimpleNamespace(
        load_modes=lambda block: asked.append(block) or ("private", "shared"),
        prepare=lambda *key: None,
    )

    def timings(engine, keys, mode, step):
        rounds[mode] = [name for name, _ in keys]
        return [FunctionTiming(*key, mode, 1, 1.0, 1.0, 1.0, 1.0) for key in keys]

    def samples(*given):
        grouped.append(given[1])
        return samples_of(*given)

    monkeypatch.setattr(measure, "samples_of", samples)
    monkeypatch.setattr(measure, "_timings", timings)
    monkeypatch.setattr(measure, "_overlap_speeds", lambda *given: {})
    found = measure.measure_functions(plan, engine)
    assert grouped == [keys]
    assert rounds == {"private": ["b0", "b2", "b4"], "shared": ["b0", "b2", "b4"]}
    assert [(t.mode, t.block) for t in found.functions] == [
        (mode, name) for mode in ("private", "shared") for name, _ in keys
    ]
    assert asked == [block.name for block in plan.blocks]


def test_a_function_that_was_not_measured_takes_medians_and_the_most_bytes():
    def timing(block, size, ms):
        return FunctionTiming(block, "decode", "mapped", size, ms, 2 * ms, 3 * ms, 4 * ms)

    found = [timing("a", 30, 1.0), timing("b", 10, 5.0), timing("c", 20, 2.0)]
    assert typical(("d", "decode"), found) == timing("d", 30, 2.0)
