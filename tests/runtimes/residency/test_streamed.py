"""Schedules carried out by an engine that computes nothing: budgets hold, runs find blocks."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import BundleError, PlanError
from edgevlm.runtimes import on_null
from edgevlm.runtimes.residency import measure as measuring
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.runtimes.residency.timings import FunctionTiming, Timings


@pytest.fixture(scope="module")
def plan(tiny_model):
    """Several blocks of every stage but `reduce`, and functions that check guesses."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from edgevlm.models.find import find
    from edgevlm.planning.vlm import make_plan
    from edgevlm.recipe import Recipe

    recipe = Recipe(model=tiny_model, tokens=16, block_size_bytes=50_000, speculate=4)
    made = make_plan(recipe, find(tiny_model)).plan
    assert min(len(made.stage(name)) for name in ("vision", "decoder", "head")) > 1
    return made


def keys_of(plan):
    return [key for keys in plan.passes.values() for key in keys]


def timings_of(plan, sizes=None, load=1.0, run=1.0):
    keys = keys_of(plan)
    made = [
        FunctionTiming(*key, "private", size, load, run, run, 0.0)
        for key, size in zip(keys, sizes or [10] * len(keys), strict=True)
    ]
    return Timings(tuple(made), 0, {})


def streamed(plan, timings, room, engine):
    """The executor over the null engine, with nothing else in the process to count."""
    made = StreamedBlocks(plan, engine, timings, room)
    made.start()
    return made


def run_pass(blocks, name, times=1):
    blocks.expect(name, times)
    for _ in range(times):
        for key in blocks.orders[name]:
            blocks.run(*key)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    order=st.lists(st.sampled_from(("encode", "reduce", "prefill", "decode", "check")), max_size=8),
)
def test_no_order_of_passes_breaks_the_budget(plan, data, order):
    count = len(keys_of(plan))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count), label="sizes")
    timings, least = timings_of(plan, sizes), max(sizes)
    room = data.draw(st.integers(least, sum(sizes) + 1), label="room")
    engine = on_null.Engine(timings, speed=0)
    blocks, expected = streamed(plan, timings, room, engine), []
    for name in order:
        times = data.draw(st.integers(1, 3), label=name)
        if data.draw(st.booleans(), label="lower"):
            room = data.draw(st.integers(least, room), label="lowered")
            blocks.set_budget(room)
            engine.most_bytes = 0 if not expected else engine.bytes
            blocks.run(*expected[-1]) if expected else None  # it evicts at the next block
            engine.runs, engine.most_bytes = engine.runs[: len(expected)], engine.bytes
        run_pass(blocks, name, times)
        expected += list(plan.passes[name]) * times
        assert engine.most_bytes <= room
    assert engine.runs == expected
    blocks.close()
    assert blocks.loads >= len(set(expected))


def test_parts_of_passes_and_jumps_run_too(plan):
    timings = timings_of(plan)
    engine = on_null.Engine(timings, speed=0)
    blocks = streamed(plan, timings, 25, engine)
    vision, decoder = plan.stage("vision")[-1].name, plan.stage("decoder")[-1].name
    wanted = [
        ("head-0", "logits"),
        (decoder, "decode"),
        ("decoder-1", "prefill"),
        (vision, "encode"),
    ]
    wanted += [(vision, "encode"), (decoder, "decode"), ("head-0", "logits")]
    for key in wanted:
        blocks.run(*key)
    assert engine.runs == wanted
    assert engine.most_bytes <= 25


def test_a_pass_takes_the_time_that_was_predicted(plan):
    timings = timings_of(plan, load=10.0, run=20.0)
    engine = on_null.Engine(timings)
    blocks = streamed(plan, timings, 30, engine)
    run_pass(blocks, "prefill")
    blocks.expect("prefill", 6)
    run_pass(blocks, "prefill")
    started = time.perf_counter()
    for _ in range(4):
        for key in plan.passes["prefill"]:
            blocks.run(*key)
    took = (time.perf_counter() - started) * 1e3 / 4
    predicted = blocks.schedules["prefill"].pass_ms
    assert predicted == pytest.approx(20 * len(plan.passes["prefill"]))  # every load behind a run
    assert took == pytest.approx(predicted, rel=0.15)


def test_a_mode_is_measured_in_passes_that_keep_a_third_of_the_functions(plan):
    timings = timings_of(plan, load=40.0, run=4.0)
    engine, keys, rounds = on_null.Engine(timings), plan.passes["encode"], []
    found = measuring._timings(engine, keys, "private", lambda *step: rounds.append(step))
    assert rounds == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [(t.block, t.function) for t in found] == list(keys)
    for timing in found:
        assert timing.load_ms >= 40.0
        assert 4.0 <= timing.first_ms < 40.0
        assert 4.0 <= timing.run_ms < 40.0
    passes_run = 3 * (1 + measuring.REPEATS) + 1 + measuring.STREAMED
    assert engine.runs == passes_run * list(keys)  # in its order, every time
    third = -(-len(keys) // 3)
    assert 10 * third < engine.most_bytes <= 10 * (third + 1)  # a third, and one more
    assert not engine.resident


def test_no_pass_follows_and_nothing_is_loaded_for_one(plan):
    timings = timings_of(plan)
    blocks = streamed(plan, timings, 20, on_null.Engine(timings, speed=0))
    run_pass(blocks, "encode", 2)
    blocks.close()
    assert blocks.loads == 2 * len(plan.passes["encode"])


def test_what_a_load_raises_comes_out_of_the_run_and_the_next_one_tries_again(plan):
    timings = timings_of(plan)
    engine = on_null.Engine(timings, speed=0)
    blocks, load, broken = streamed(plan, timings, 20, engine), engine.load, [True]

    def failing(block, function=None, mode="private"):
        if block == "decoder-1" and broken:
            broken.pop()
            raise BundleError("gone")
        load(block, function, mode)

    engine.load = failing
    with pytest.raises(BundleError, match=r"^gone$"):
        run_pass(blocks, "prefill")
    run_pass(blocks, "prefill")
    order = list(plan.passes["prefill"])
    assert engine.runs[-len(order) :] == order


def test_a_budget_that_is_too_small_is_refused_with_one_that_would_do(plan):
    timings = timings_of(plan, [10_000_000] * len(keys_of(plan)))
    blocks = streamed(plan, timings, 30_000_000, on_null.Engine(timings, speed=0))
    with pytest.raises(
        PlanError, match=r"^a budget of 9 MB is too small: 0 MB are taken before any"
    ):
        blocks.set_budget(9_000_000)
    run_pass(blocks, "prefill")  # the old one goes on


def test_the_faster_mode_stays_and_the_sooner_one_streams():
    key = ("head-0", "logits")
    modes = (
        FunctionTiming(*key, "packed", 10, 30.0, 2.0, 1.0, 0.0),
        FunctionTiming(*key, "mapped", 10, 1.0, 4.0, 3.0, 0.0),
    )
    large = FunctionTiming(*key, "large", 20, 1.0, 1.5, 0.5, 0.0)
    assert Timings((*modes, large), 0, {}).streamed(key).mode == "large"
    timings = Timings(modes, 0, {})
    assert (timings.streamed(key).mode, timings.resident(key).mode) == ("mapped", "packed")
    found = [timings.resident(key, runs).mode for runs in (1, 5, 50)]
    assert found == ["mapped", "mapped", "packed"]
