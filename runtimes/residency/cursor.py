"""The position of a loop in its passes: the next run, the next load, what may be evicted.

It executes schedules of `schedule` as pure logic: no thread, no clock, no engine. `streamed`
queries it and reports events to it, always under one lock.

Runs are numbered from the beginning of the pass in which a function was entered: run `i` is at
position `i % count` of the pass. A function that is not the next one is entered: within the same
pass the steps between were skipped and the numbers continue, else passes begin again at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm.runtimes.engine import Key
from edgevlm.runtimes.residency.schedule import Schedule

# Before every run: a load with nothing to wait for.
AT_ONCE = -(10**9)


@dataclass(frozen=True)
class LoadTask:
    """A function to load.

    Attributes:
        key: The function.
        streams: Whether it is evicted after its run.
        runs: Number of its runs while it is resident; None is unknown.
    """

    key: Key
    streams: bool
    runs: int | None


class Cursor:
    """The passes of a plan, and which of their functions are in memory.

    Attributes:
        orders: Functions of each pass, in order.
        in_memory: Bytes of each function that is loaded and still needed.
    """

    def __init__(self, orders: Mapping[str, tuple[Key, ...]]) -> None:
        self.orders = orders
        self.in_memory: dict[Key, int] = {}
        self._pass_of = {key: name for name, keys in orders.items() for key in keys}
        self._expected: tuple[str, int | None] | None = None
        self._over: list[Key] = []  # streamed functions in memory whose run is over
        self._queue: list[tuple[int, int]] = []  # (run to load for, run that must be over before)
        self.leave()

    def leave(self) -> None:
        """Leave all passes; the next function enters one."""
        self._name, self._order = "", tuple[Key, ...]()
        self._after: dict[int, int] = {}  # by streamed position, see `Load.after`
        self._run = self._end = 0  # the next run, and the one after the last (0: unknown)
        self._queue.clear()

    def expect(self, pass_name: str, count: int | None) -> None:
        """Announce `count` passes, from the next function of that pass on; 0 has no effect."""
        if count != 0:
            self._expected = pass_name, count

    def follows(self, key: Key) -> bool:
        """Whether a function is the next one of the current passes."""
        if self._expected is not None and self._expected[0] == self._pass_of[key]:
            return False
        over = not self._name or 0 < self._end <= self._run
        return not over and self._order[self._position(self._run)] == key

    def enter(self, key: Key, schedules: Mapping[str, Schedule]) -> list[Key]:
        """Continue at a function that does not follow; returns the functions to evict first.

        Resident functions of its pass stay; those of other passes stay where there is room.
        """
        name = self._pass_of[key]
        self._move_to(key, name)
        now = schedules[name]
        self._after = {load.position: load.after for load in now.loads}
        stays = {self._order[i] for i in now.resident}
        evicted = [k for k in self.in_memory if k in self._order and k not in stays]
        for other in evicted:
            del self.in_memory[other]
        for other in [k for k in self.in_memory if k not in stays]:
            beside = sum(size for k, size in self.in_memory.items() if k not in stays)
            if now.peak_bytes + beside > now.room_bytes:
                evicted.append(other)
                del self.in_memory[other]
        self._queue = [
            (run, self._may_load_after(run))
            for run in range(self._run, self._run + len(self._order))
            if self._order[self._position(run)] not in self.in_memory and not 0 < self._end <= run
        ]
        return evicted

    def may_load(self, ahead: bool) -> bool:
        """Whether a load may begin; if `ahead`, whether it may during the run before its own.

        A load that has to wait for the run before its own is left to the running thread: waking
        another thread and waiting for it takes as long as a small load.
        """
        if not self._queue:
            return False
        run, after = self._queue[0]
        return after < self._run and not (ahead and after == run - 1)

    def next_load(self) -> LoadTask:
        """Take the next load; a streamed function is queued again for the next pass."""
        run, _ = self._queue.pop(0)
        count, position = len(self._order), self._position(run)
        streams = position in self._after
        if streams and not 0 < self._end <= run + count:
            self._queue.append((run + count, run + count - position + self._after[position]))
        runs = -(-(self._end - run) // count) if self._end else None
        return LoadTask(self._order[position], streams, runs)

    def loaded(self, key: Key, size: int) -> None:
        """Record a finished load."""
        self.in_memory[key] = size

    def ran(self) -> None:
        """Record that the next run is over; a streamed function may be evicted now."""
        position = self._position(self._run)
        key = self._order[position]
        if position in self._after and key in self.in_memory:
            del self.in_memory[key]
            self._over.append(key)
        self._run += 1

    def evictable(self) -> list[Key]:
        """Take the functions whose run is over and that are still in memory."""
        over, self._over = self._over, []
        return over

    def clear(self) -> list[Key]:
        """Leave all passes; returns every function in memory, to be evicted."""
        keys = [*self.evictable(), *self.in_memory]
        self.in_memory.clear()
        self.leave()
        return keys

    def drop_loads(self) -> None:
        """Drop all queued loads until a function is entered."""
        self._queue.clear()

    def _move_to(self, key: Key, name: str) -> None:
        """Set the numbers of the next run and of the one after the last."""
        expected, position = self._expected, self.orders[name].index(key)
        if expected is not None and expected[0] == name:
            self._expected = None
            self._end = len(self.orders[name]) * (expected[1] or 0)
            self._run = position
        else:
            ahead = self._run + (position - self._run) % len(self.orders[name])
            goes_on = self._name == name and not 0 < self._end <= ahead
            self._run, self._end = (ahead, self._end) if goes_on else (position, 0)
        self._name, self._order = name, self.orders[name]

    def _may_load_after(self, run: int) -> int:
        """The run that must be over before a load; resident functions wait for none."""
        position = self._position(run)
        if position not in self._after:
            return AT_ONCE
        return run - position + self._after[position]

    def _position(self, run: int) -> int:
        return run % len(self._order)
