"""Schedules carried out by an engine that computes nothing: budgets hold, runs find blocks."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import BundleError, PlanError
from edgevlm.runtimes import on_null
from edgevlm.runtimes.residency import measure as measuring
from edgevlm.runtimes.residency.costs import Cost, Costs
from edgevlm.runtimes.residency.streamed import StreamedBlocks

SHAPE = {"vision": 3, "decoder": 5, "head": 2}
FUNCTIONS = {"vision": ("encode",), "reduce": ("reduce",), "decoder": ("prefill", "decode")}


def plan_of(shape=SHAPE):
    """As much of a plan as passes need."""
    stages = {s: [SimpleNamespace(name=f"{s}-{i}") for i in range(n)] for s, n in shape.items()}
    stages["reduce"] = [SimpleNamespace(name="reduce-0")]
    return SimpleNamespace(stage=lambda name: stages[name], host=SimpleNamespace(check=4))


PLAN = plan_of()
KEYS = [key for keys in PLAN.passes.values() for key in keys]


def costs_of(sizes, load=1.0, run=1.0):
    made = [
        Cost(*key, "own", size, load, run, run, 0.0) for key, size in zip(KEYS, sizes, strict=True)
    ]
    return Costs(tuple(made), 0, {})


def streamed(costs, room, engine):
    """The executor over the null engine, with nothing else in the process to count."""
    made = StreamedBlocks(PLAN, engine, costs, room)
    made.start()
    return made


def run_pass(blocks, name, times=1):
    blocks.begin(name, times)
    for _ in range(times):
        for key in PLAN.passes[name]:
            blocks.run(*key)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 40), min_size=len(KEYS), max_size=len(KEYS)),
    order=st.lists(st.sampled_from(tuple(PLAN.passes)), max_size=8),
)
def test_no_order_of_passes_breaks_the_budget(data, sizes, order):
    costs, least = costs_of(sizes), max(sizes)
    room = data.draw(st.integers(least, sum(sizes) + 1), label="room")
    engine = on_null.Engine(costs, speed=0)
    blocks, expected = streamed(costs, room, engine), []
    for name in order:
        times = data.draw(st.integers(1, 3), label=name)
        if data.draw(st.booleans(), label="lower"):
            room = data.draw(st.integers(least, room), label="lowered")
            blocks.set_budget(room)
            engine.most_bytes = 0 if not expected else engine.bytes
            blocks.run(*expected[-1]) if expected else None  # it evicts at the next block
            engine.runs, engine.most_bytes = engine.runs[: len(expected)], engine.bytes
        run_pass(blocks, name, times)
        expected += list(PLAN.passes[name]) * times
        assert engine.most_bytes <= room
    assert engine.runs == expected
    blocks.close()
    assert blocks.loads >= len(set(expected))


def test_parts_of_passes_and_jumps_run_too():
    costs = costs_of([10] * len(KEYS))
    engine = on_null.Engine(costs, speed=0)
    blocks = streamed(costs, 25, engine)
    wanted = [
        ("head-0", "logits"),
        ("decoder-3", "decode"),
        ("decoder-1", "prefill"),
        ("vision-2", "encode"),
    ]
    wanted += [("vision-2", "encode"), ("decoder-4", "decode"), ("head-0", "logits")]
    for key in wanted:
        blocks.run(*key)
    assert engine.runs == wanted
    assert engine.most_bytes <= 25


def test_a_pass_takes_the_time_that_was_predicted():

    costs = costs_of([10] * len(KEYS), load=10.0, run=20.0)
    engine = on_null.Engine(costs)
    blocks = streamed(costs, 30, engine)
    run_pass(blocks, "prefill")
    blocks.begin("prefill", 6)
    run_pass(blocks, "prefill")
    started = time.perf_counter()
    for _ in range(4):
        for key in PLAN.passes["prefill"]:
            blocks.run(*key)
    took = (time.perf_counter() - started) * 1e3 / 4
    predicted = blocks.schedules["prefill"].pass_ms
    assert predicted == pytest.approx(100)  # every load behind a run
    assert took == pytest.approx(predicted, rel=0.15)


def test_a_form_is_measured_in_passes_that_keep_a_third_of_it():
    costs = costs_of([10] * len(KEYS), load=8.0, run=4.0)
    engine, keys = on_null.Engine(costs), PLAN.passes["prefill"]
    found = measuring._costs(engine, keys, "own")
    assert [(c.block, c.function) for c in found] == list(keys)
    for cost in found:
        assert 8.0 <= cost.load_ms < 12.0
        assert 4.0 <= cost.first_ms < 7.0
        assert 4.0 <= cost.run_ms < 7.0
    passes_run = 3 * (1 + measuring.REPEATS) + 1 + measuring.STREAMED
    assert engine.runs == passes_run * list(keys)  # in its order, every time
    assert 10 * 2 < engine.most_bytes <= 10 * (2 + 1)  # five functions: two of them, and one more
    assert not engine.there


def test_no_pass_follows_and_nothing_is_loaded_for_one():
    costs = costs_of([10] * len(KEYS))
    blocks = streamed(costs, 20, on_null.Engine(costs, speed=0))
    run_pass(blocks, "encode", 2)
    blocks._stop_loading()
    assert blocks.loads == 6


def test_what_a_load_raises_comes_out_of_the_run_and_the_next_one_tries_again():
    costs = costs_of([10] * len(KEYS))
    engine = on_null.Engine(costs, speed=0)
    blocks, load, broken = streamed(costs, 20, engine), engine.load, [True]

    def failing(block, function=None, form="own"):
        if block == "decoder-2" and broken:
            broken.pop()
            raise BundleError("gone")
        load(block, function, form)

    engine.load = failing
    with pytest.raises(BundleError, match=r"^gone$"):
        run_pass(blocks, "prefill")
    run_pass(blocks, "prefill")
    assert engine.runs[-5:] == list(PLAN.passes["prefill"])


def test_a_budget_that_is_too_small_is_refused_with_one_that_would_do():
    costs = costs_of([10_000_000] * len(KEYS))
    blocks = streamed(costs, 30_000_000, on_null.Engine(costs, speed=0))
    with pytest.raises(
        PlanError, match=r"^a budget of 9 MB is too small: 0 MB are taken before any"
    ):
        blocks.set_budget(9_000_000)
    run_pass(blocks, "prefill")  # the old one goes on


def test_the_faster_form_is_kept_and_the_sooner_one_streams():
    key = ("head-0", "logits")
    forms = [
        Cost(*key, "packed", 10, 30.0, 2.0, 1.0, 0.0),
        Cost(*key, "mapped", 10, 1.0, 4.0, 3.0, 0.0),
    ]
    costs = Costs((*forms, Cost(*key, "large", 20, 1.0, 1.5, 0.5, 0.0)), 0, {})
    assert costs.streamed(key).form == "large"
    costs = Costs(tuple(forms), 0, {})
    assert (costs.streamed(key).form, costs.kept(key).form) == ("mapped", "packed")
    assert [costs.kept(key, times).form for times in (1, 5, 50)] == ["mapped", "mapped", "packed"]
