"""As many blocks in memory as a budget allows, while a loop runs.

Schedules of `loader`, carried out: the loop runs; it loads, or a thread ahead of it, and who loads
first evicts what is over.

A budget is about the process: its resident memory as the kernel counts it (VmRSS), so the Python
that runs, the cache, the arrays between blocks, the engine's working memory and the pages of mapped
weights are all inside. That is never less than what phones kill for (private dirty memory), so the
promise holds there too.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm.bundle.plan import Plan
from edgevlm.runtimes.engine import Array, Engine
from edgevlm.runtimes.residency.costs import Costs, Key, minimum_budget, schedules
from edgevlm.runtimes.residency.memory import resident_bytes, return_freed
from edgevlm.runtimes.residency.schedule import Schedule

# For what is not counted: text, Python's own objects, pages of the tokenizer and of libraries.
RESERVE_BYTES = 12 * 10**6


class StreamedBlocks:
    """Blocks come and go, and the process stays within a budget."""

    keeps_all = False

    def __init__(self, plan: Plan[Any], engine: Engine, costs: Costs, budget_bytes: int) -> None:
        self.plan, self.engine, self.costs = plan, engine, costs
        self.budget_bytes, self.fixed_bytes, self.loads = budget_bytes, 0, 0
        self.orders = plan.passes
        self._of = {key: name for name, keys in self.orders.items() for key in keys}
        self._there: dict[Key, int] = {}
        self._gone: list[Key] = []  # over, and to be evicted by who loads next
        self._change = threading.Condition()
        self._queue: list[tuple[int, int]] = []  # run, and the run that must be over before
        self._done = self._first = self._end = 0
        self._after: dict[int, int] = {}
        self._failed: BaseException | None = None
        self._loading, self._running, self._closed = False, False, False
        self._name = ""
        self._hint: tuple[str, int | None] = ("", None)
        self._wanted: tuple[int, dict[str, Schedule]] | None = None

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function; they are set to zero, and count towards the budget."""
        for array in arrays.values():
            array[...] = 0  # now and whole, so that what is resident is what will be
        self.engine.bind(block, function, arrays)

    def open(self) -> None:
        """Make the schedules and start the thread that loads.

        Raises:
            PlanError: If the budget is too small.
        """
        for key in self._of:
            for form in {self.costs.streamed(key).form, self.costs.kept(key).form}:
                self.engine.prepare(*key, form)
        return_freed()
        image = self.plan.host.image
        pixels = 2 * 4 * 3 * image.height * image.width * image.views
        self.fixed_bytes = resident_bytes() + RESERVE_BYTES + self.costs.workspace_bytes + pixels
        self.start()

    def start(self) -> None:
        """`open` where `fixed_bytes` is known: what is taken before any block.

        Raises:
            PlanError: If the budget is too small.
        """
        self.schedules = schedules(self.costs, self.orders, self.fixed_bytes, self.budget_bytes)
        self.minimum_budget_bytes = minimum_budget(self.costs, self.orders, self.fixed_bytes)
        self._thread = threading.Thread(target=self._load_ahead, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # Python must not end while the thread is inside an engine

    def set_budget(self, budget_bytes: int) -> None:
        """Another budget, from the next run on.

        Raises:
            PlanError: If it is too small; the old one stays.
        """
        made = schedules(self.costs, self.orders, self.fixed_bytes, budget_bytes)
        self._wanted = budget_bytes, made

    def begin(self, name: str, passes: int | None) -> None:
        """So many passes follow; none is loaded for after them."""
        self._hint = (name, passes)

    def run(self, block: str, function: str) -> None:
        """Run a function as soon as it is loaded; if it does not stay, the next load evicts it.

        Raises:
            EdgeVLMError: What loading or running raised.
        """
        key = (block, function)
        if self._wanted is not None:
            self._stop_loading()
            self.budget_bytes, self.schedules = self._wanted
            self._wanted, self._name = None, ""
        if self._next() != key or self._hint[0] == self._of[key]:
            self._enter(key)
        self._wait_for(key)
        self._running = True
        try:
            self.engine.run(block, function)
            if self._place() not in self._kept:
                with self._change:
                    self._there.pop(key)
                    self._gone.append(key)
        finally:
            self._running = False
            with self._change:
                self._done += 1
                self._tell()

    def close(self) -> None:
        """End the thread; a load under way is waited for."""
        self._stop_loading()
        atexit.unregister(self.close)
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    def _place(self) -> int:
        return self._done % len(self._units)

    def _next(self) -> Key | None:
        """What the pass under way runs next."""
        if not self._name or self._done >= self._end > 0:
            return None
        unit = self._units[self._place()]
        return unit.block, unit.function

    def _enter(self, key: Key) -> None:
        """Begin, or go on with, the passes that a function belongs to."""
        self._stop_loading()
        self._evict_gone()
        name = self._of[key]
        now = self.schedules[name]
        self._name, self._units, self._kept = name, now.units, frozenset(now.kept)
        count = len(now.units)
        self._done = self.orders[name].index(key)
        hinted = self._hint[1] if self._hint[0] == name else None
        self._end = 0 if hinted is None else hinted * count
        self._hint = ("", None)
        mine = {self.orders[name][i] for i in now.kept}
        for other in [k for k in self._there if k in self.orders[name] and k not in mine]:
            self._evict([other])
        for other in [k for k in self._there if k not in mine]:  # as far as they are in the way
            if now.peak_bytes + sum(b for k, b in self._there.items() if k not in mine) > (
                now.room_bytes
            ):
                self._evict([other])
        after = {load.unit: load.after for load in now.loads}
        queue = []
        for i in range(self._done, self._done + count):  # in the first pass, kept ones too
            place = i % count
            if self.orders[name][place] not in self._there:
                queue.append((i, i - place + after[place] if place in after else -count))
        with self._change:
            self._first, self._after, self._queue = self._done, after, queue
            self._change.notify_all()

    def _wait_for(self, key: Key) -> None:
        """Until a function is there: what nobody loads, the loop loads itself.

        Raises:
            EdgeVLMError: What loading raised.
        """
        while True:
            with self._change:
                while not (key in self._there or self._failed or self._ready(ahead=False)):
                    self._change.wait()
                if self._failed is not None:
                    failed, self._failed, self._name = self._failed, None, ""
                    raise failed
                if key in self._there:
                    return
                index = self._take()
            try:
                self._load(index)
            finally:  # Ctrl-C too
                with self._change:
                    self._loading = False
                    self._tell()

    def _load_ahead(self) -> None:
        """The thread: one load at a time, each when there is room for it.

        A load that cannot begin before the run before its own is over is left to the loop: to wake
        a thread and be woken by it takes as long as a small load.
        """
        while True:
            with self._change:
                while not self._closed and not self._ready(ahead=True):
                    self._change.wait()
                if self._closed:
                    return
                index = self._take()
            self._load(index)
            with self._change:
                self._loading = False
                self._change.notify_all()

    def _take(self) -> int:
        """The next load is the caller's."""
        index, _ = self._queue.pop(0)
        count = len(self._units)
        self._loading = True
        if index % count in self._after:  # it streams: again in the next pass
            following = index + count
            if not self._end or following < self._end:
                border = following - index % count
                self._queue.append((following, border + self._after[index % count]))
        return index

    def _load(self, index: int) -> None:
        place = index % len(self._units)
        key, failed = (self._units[place].block, self._units[place].function), None
        times = self._end // len(self._units) if self._end else None
        streams = place in self._after
        cost = self.costs.streamed(key) if streams else self.costs.kept(key, times)
        try:
            self._evict_gone()
            self._wait_for_room(cost.bytes)
            self.engine.load(*key, cost.form)
        except BaseException as cause:
            failed = cause
        with self._change:
            if failed is None:
                self._there[key] = cost.bytes
                self.loads += 1
            else:
                self._failed = failed
                self._queue.clear()

    def _wait_for_room(self, size: int) -> None:
        """What was measured may not be all that is there: then no load begins beside a run."""
        with self._change:
            while self._running and self.fixed_bytes:
                if resident_bytes() + size <= self.budget_bytes:
                    return
                self._change.wait()

    def _ready(self, ahead: bool) -> bool:
        """Whether a load may begin; if `ahead`, one that may while something runs."""
        if not self._queue or self._loading or self._failed is not None:
            return False
        index, after = self._queue[0]
        return after < max(self._done, self._first) and not (ahead and after == index - 1)

    def _tell(self) -> None:
        """Wake the thread if there is anything for it: to be woken for nothing takes a core."""
        if self._loading or self._ready(ahead=True):
            self._change.notify_all()

    def _stop_loading(self) -> None:
        """Drop what is queued and wait for the load under way."""
        with self._change:
            self._queue.clear()
            while self._loading:
                self._change.wait()
            self._failed = None

    def _evict_gone(self) -> None:
        with self._change:
            gone, self._gone = self._gone, []
        self._evict(gone)

    def _evict(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._there.pop(key, None)
            self.engine.unload(*key)
        if keys:
            return_freed()
