"""What may load, run and be evicted, step by step and without threads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.runtimes.residency.cursor import Cursor
from edgevlm.runtimes.residency.schedule import Unit, schedule

COUNT = 5
KEYS = tuple((f"b{i}", "run") for i in range(COUNT))
OTHER = (("o0", "run"), ("o1", "run"))
ORDERS = {"a": KEYS, "o": OTHER}


def schedules(room, sizes=(10,) * COUNT):
    def units(keys, sizes):
        return [
            Unit(*key, size, load_ms=1, first_ms=4, run_ms=4)
            for key, size in zip(keys, sizes, strict=True)
        ]

    return {"a": schedule(units(KEYS, sizes), room), "o": schedule(units(OTHER, (10, 10)), room)}


def load_all(cursor, ahead=False):
    """Do the loads that may be done now; their functions."""
    done = []
    while cursor.may_load(ahead):
        task = cursor.next_load()
        cursor.evictable()
        cursor.loaded(task.key, 10)
        done.append(task.key)
    return done


def test_streams_are_loaded_ahead_and_evicted_after_their_run():
    cursor, made = Cursor(ORDERS), schedules(20)  # room for two: all of them stream
    cursor.expect("a", 2)
    assert not cursor.follows(KEYS[0])
    assert cursor.enter(KEYS[0], made) == []
    assert load_all(cursor) == [KEYS[0], KEYS[1]]
    assert not cursor.may_load(ahead=False)
    for step in range(2 * COUNT):
        key = KEYS[step % COUNT]
        assert cursor.follows(key)
        assert key in cursor.in_memory
        cursor.ran()
        assert key not in cursor.in_memory
        assert len(cursor.in_memory) <= 1
        load_all(cursor)
    assert not cursor.in_memory  # two passes were expected: nothing is loaded for a third
    assert not cursor.follows(KEYS[0])


def test_what_stays_is_loaded_once_and_for_all_its_runs():
    cursor, made = Cursor(ORDERS), schedules(10 * COUNT)
    cursor.expect("a", 3)
    cursor.enter(KEYS[0], made)
    tasks = [cursor.next_load() for _ in KEYS]
    assert [(task.key, task.streams, task.runs) for task in tasks] == [(k, False, 3) for k in KEYS]
    assert not cursor.may_load(ahead=False)
    cursor.enter(OTHER[0], made)
    assert cursor.next_load().runs is None  # as many as come


def test_a_load_that_must_wait_for_the_run_before_is_not_done_ahead():
    cursor, made = Cursor(ORDERS), schedules(10)  # room for one
    cursor.enter(KEYS[0], made)
    assert load_all(cursor, ahead=True) == []
    assert load_all(cursor) == [KEYS[0]]
    cursor.ran()
    assert not cursor.may_load(ahead=True)
    assert cursor.may_load(ahead=False)


@pytest.mark.parametrize("skipped", range(1, COUNT))
def test_a_skipped_step_breaks_nothing(skipped):
    """The passes that were expected go on, and nothing is loaded after their end."""
    cursor, made = Cursor(ORDERS), schedules(20)
    cursor.expect("a", 2)
    loads, runs = [], 0
    for _ in range(2):
        for key in [key for i, key in enumerate(KEYS) if i != skipped]:
            if not cursor.follows(key):
                for gone in (*cursor.evictable(), *cursor.enter(key, made)):
                    assert gone not in cursor.in_memory
            loads += load_all(cursor)
            assert key in cursor.in_memory
            cursor.ran()
            runs += 1
            loads += load_all(cursor)
    assert runs == 2 * (COUNT - 1)
    if skipped != COUNT - 1:  # else the last step is still to come
        assert not cursor.may_load(ahead=False)
        assert not cursor.in_memory


def test_other_passes_leave_what_is_not_in_the_way():
    roomy = schedules(70)
    cursor = Cursor(ORDERS)
    cursor.enter(KEYS[0], roomy)
    load_all(cursor)
    assert cursor.enter(OTHER[0], roomy) == []  # 50 + 20
    load_all(cursor)
    assert len(cursor.in_memory) == 7
    tight = schedules(50)
    cursor.leave()
    evicted = cursor.enter(KEYS[0], tight)
    assert evicted == [*OTHER]


def test_nothing_is_expected_of_no_pass():
    cursor, made = Cursor(ORDERS), schedules(20)
    cursor.enter(KEYS[0], made)
    cursor.expect("a", 0)
    assert cursor.follows(KEYS[0])


@settings(deadline=None)
@given(
    data=st.data(),
    sizes=st.tuples(*[st.integers(1, 20)] * COUNT),
    steps=st.lists(st.sampled_from((*KEYS, *OTHER)), max_size=30),
)
def test_any_order_of_steps_stays_within_the_room(data, sizes, steps):
    least = max(*sizes, 10)
    room = data.draw(st.integers(least, sum(sizes) + 21), label="room")
    made, bytes_of = schedules(room, sizes), dict(zip(KEYS, sizes, strict=True))
    cursor = Cursor(ORDERS)
    held: set[tuple[str, str]] = set()
    for key in steps:
        if data.draw(st.booleans(), label="expect"):
            cursor.expect("a" if key in KEYS else "o", data.draw(st.sampled_from((0, 1, 2, None))))
        if not cursor.follows(key):
            held -= {*cursor.evictable()}
            held -= {*cursor.enter(key, made)}
        while cursor.may_load(ahead=False):
            task = cursor.next_load()
            held -= {*cursor.evictable()}
            cursor.loaded(task.key, bytes_of.get(task.key, 10))
            held.add(task.key)
            assert sum(bytes_of.get(k, 10) for k in held) <= room
        assert key in cursor.in_memory
        cursor.ran()
