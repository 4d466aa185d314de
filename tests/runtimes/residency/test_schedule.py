"""Schedules: they keep to the room, whatever the sizes, and no choice of what to keep is better."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import PlanError
from edgevlm.runtimes.residency import schedule as loader
from edgevlm.runtimes.residency.schedule import Unit, minimum_bytes, replay, schedule

MS = st.floats(0.1, 50)
UNIT = st.builds(
    lambda size, load, run, more: Unit("b", "run", size, load, run + more, run),
    st.integers(1, 60),
    MS,
    MS,
    st.floats(0, 20),
)
PASS = st.lists(UNIT, min_size=1, max_size=12)
SHARE = st.sampled_from((1.0, 0.9, 0.5))


def room_of(data, units):
    total = sum(u.bytes for u in units)
    return data.draw(st.integers(minimum_bytes(units), total + 5), label="room")


def occupied(made, passes=3):
    """Bytes at each moment, if every load begins as early as it may and every run as late."""
    count, held = len(made.units), sum(made.units[i].bytes for i in made.resident)
    most = held
    for now in range(passes * count):  # runs before `now` are over, that of `now` has not begun
        inside = sum(
            made.units[load.position].bytes
            for p in range(passes + 1)
            for load in made.loads
            if p * count + load.after < now <= p * count + load.position
        )
        most = max(most, held + inside)
    return most


@settings(deadline=None)
@given(data=st.data(), units=PASS, share=SHARE)
def test_a_schedule_keeps_to_its_room(data, units, share):
    made = schedule(units, room_of(data, units), share)
    assert sorted([*made.resident, *(load.position for load in made.loads)]) == list(
        range(len(units))
    )
    assert all(load.after < load.position for load in made.loads)
    assert all(load.after > load.position - 1 - len(units) for load in made.loads)
    assert occupied(made) <= made.peak_bytes <= made.room_bytes


@settings(deadline=None)
@given(data=st.data(), units=PASS, share=SHARE)
def test_times_lie_between_perfect_overlap_and_none(data, units, share):
    made = schedule(units, room_of(data, units), share)
    streamed = [units[load.position] for load in made.loads]
    runs = sum(u.first_ms for u in streamed) + sum(units[i].run_ms for i in made.resident)
    loads = sum(u.load_ms for u in streamed)
    assert max(runs, loads) * 0.999 <= made.pass_ms <= (runs + loads) * 1.001
    if share < loader.FREE:
        assert made.pass_ms == pytest.approx(runs + loads)
    assert made.first_ms >= max(sum(u.load_ms for u in units), sum(u.first_ms for u in units)) * (
        0.999
    )
    if not made.loads:
        assert made.pass_ms == pytest.approx(runs)


def rate_of(units, room, share):
    def rate(kept):
        loads = loader._loads(units, kept, room, share >= loader.FREE)
        times = replay(units, kept, loads, loader.PASSES, share)
        return times[-1] - times[-2], sum(units[load.position].bytes for load in loads)

    return rate


@settings(deadline=None, max_examples=60)
@given(data=st.data(), units=st.lists(UNIT, min_size=2, max_size=8), share=SHARE)
def test_climbing_finds_what_trying_everything_finds_or_nearly(data, units, share):
    room, units = room_of(data, units), tuple(units)
    rate, fits = rate_of(units, room, share), loader._fits(units, room)
    every = (
        frozenset(c) for n in range(len(units) + 1) for c in combinations(range(len(units)), n)
    )
    best = min(rate(c)[0] for c in every if fits(c))
    climbed = loader.climb(len(units), fits, rate, loader._starts(units, fits))
    assert rate(climbed)[0] <= 1.05 * best
    assert schedule(units, room, share).pass_ms <= 1.0001 * best


def test_equal_blocks_keep_what_fits_and_hide_loads_behind_runs():
    units = [Unit(f"b{i}", "run", 10, load_ms=5, first_ms=20, run_ms=20) for i in range(8)]
    made = schedule(units, 20)
    assert made.pass_ms == pytest.approx(8 * 20)  # two at a time: each load behind a run
    assert made.first_ms == pytest.approx(8 * 20 + 5)
    assert schedule(units, 10).pass_ms == pytest.approx(8 * 25)  # one at a time: none does
    dear = [Unit(f"b{i}", "run", 10, load_ms=20, first_ms=1, run_ms=1) for i in range(8)]
    assert [len(schedule(dear, room).resident) for room in (10, 40, 70, 80)] == [0, 3, 6, 8]


def test_loads_go_on_into_the_next_pass():
    units = [Unit(f"b{i}", "run", 10, 5, 20, 20) for i in range(4)]
    made = schedule(units, 20)
    assert made.resident == ()
    assert [load.after for load in made.loads] == [-2, -1, 0, 1]


def test_a_room_that_is_too_small_is_refused_with_the_size_that_would_do():
    units = [Unit("small", "run", 10, 1, 1, 1), Unit("large", "run", 2000, 1, 1, 1)]
    with pytest.raises(
        PlanError, match=r"^1,999 bytes are too few for large, expected at least 2,000"
    ):
        schedule(units, 1999)


def test_many_units_are_planned_soon():
    import time

    units = [Unit(f"b{i}", "run", 10 + i % 3, 5 + i % 5, 8, 7) for i in range(60)]
    started = time.perf_counter()
    made = schedule(units, 300, 0.9)
    assert time.perf_counter() - started < 30
    assert 0 < len(made.resident) < 30
