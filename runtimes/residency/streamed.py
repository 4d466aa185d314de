"""As many blocks in memory as a budget allows, while a loop runs.

The `Cursor` decides; two threads act: the loop runs functions, and a thread ahead of it loads them.
Each load first evicts functions whose run is over. The loop loads what the thread leaves to it.

A budget is for the process: its resident memory as the kernel counts it (VmRSS). The Python
interpreter, the cache, the arrays between blocks, the engine's working memory and the pages of
mapped weights all count. That is never less than private memory, the figure mobile systems use to
kill apps, so the promise holds there too.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgevlm.bundle.plan import Plan
from edgevlm.registry import KINDS
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import Engine, Key
from edgevlm.runtimes.residency.cursor import Cursor, LoadTask
from edgevlm.runtimes.residency.memory import resident_bytes, return_freed
from edgevlm.runtimes.residency.schedule import Schedule
from edgevlm.runtimes.residency.timings import Timings, minimum_budget, schedules

# For memory that is not measured: text, Python objects, pages of the tokenizer and of libraries.
RESERVE_BYTES = 12 * 10**6
# Left free by memory that is taken between runs, such as a picture's: measured, so less is unknown.
MARGIN_BYTES = 4 * 10**6


class StreamedBlocks:
    """Loads and evicts blocks so that the process stays within a budget.

    Attributes:
        budget_bytes: Most bytes of the process.
        fixed_bytes: Bytes of everything but blocks; known after `open`.
        minimum_budget_bytes: The smallest possible budget.
        schedules: The schedule of each pass.
        loads: Number of loads so far.
    """

    keeps_all = False

    def __init__(
        self,
        plan: Plan[Any],
        engine: Engine,
        timings: Timings,
        budget_bytes: int,
        orders: Mapping[str, tuple[Key, ...]] | None = None,
    ) -> None:
        """`orders` are the passes to run; None is all passes of the plan."""
        self.plan, self.engine, self.timings = plan, engine, timings
        self.budget_bytes, self.fixed_bytes, self.loads = budget_bytes, 0, 0
        self._base_bytes = 0
        self.orders = plan.passes if orders is None else orders
        self._cursor = Cursor(self.orders)
        self._change = threading.Condition()
        self._loading = self._running = self._closed = False
        self._failed: BaseException | None = None
        self._next_budget: tuple[int, dict[str, Schedule]] | None = None

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function; they are zeroed, and count towards the budget."""
        for array in arrays.values():
            array[...] = 0  # touches all pages now, so that resident memory does not grow later
        self.engine.bind(block, function, arrays)

    def open(self) -> None:
        """Make the schedules and start the thread that loads.

        Raises:
            PlanError: If the budget is too small.
        """
        for key in {key for keys in self.orders.values() for key in keys}:
            for mode in {self.timings.streamed(key).mode, self.timings.resident(key).mode}:
                self.engine.prepare(*key, mode)
        return_freed()
        self._count(resident_bytes())
        self.start()

    def start(self) -> None:
        """`open` for a known `fixed_bytes`.

        Raises:
            PlanError: If the budget is too small.
        """
        self.schedules = self._schedules(self.budget_bytes)
        self.minimum_budget_bytes = minimum_budget(self.timings, self.orders, self.fixed_bytes)
        self._thread = threading.Thread(target=self._load_ahead, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # Python must not end while the thread is inside an engine

    def set_budget(self, budget_bytes: int) -> None:
        """Change the budget, from the next run on.

        Raises:
            PlanError: If it is too small; the budget does not change.
        """
        self._next_budget = budget_bytes, self._schedules(budget_bytes)

    def shortage(self, size: int) -> int:
        """Bytes by which `size` more would exceed the budget, after evictions if necessary."""
        if (missing := self._missing(size)) > 0:
            self._evict_all()
            missing = self._missing(size)
        return max(0, missing)

    def settle(self) -> None:
        """Count what the process took beside its blocks since they were opened.

        Raises:
            PlanError: If the budget is too small for it; the message has the smallest one.
        """
        with self._change:
            blocks = sum(self._cursor.in_memory.values())
        known = self._base_bytes + self.timings.workspace_bytes + RESERVE_BYTES
        if resident_bytes() - blocks <= known:
            return
        self._evict_all()
        if (resident := resident_bytes()) > known:
            self._count(resident - self.timings.workspace_bytes)
            self.schedules = self._schedules(self.budget_bytes)
            self.minimum_budget_bytes = minimum_budget(self.timings, self.orders, self.fixed_bytes)
            if self._next_budget is not None:
                self.set_budget(self._next_budget[0])

    def expect(self, pass_name: str, count: int | None) -> None:
        """Announce `count` passes; nothing is loaded ahead after them."""
        with self._change:
            self._cursor.expect(pass_name, count)

    def run(self, block: str, function: str) -> None:
        """Run a function as soon as it is loaded; the next load evicts it if it streams.

        Raises:
            EdgeVLMError: The error of the load or of the run.
        """
        self.run_each(block, function, (None,))

    def run_each(self, block: str, function: str, turns: Iterable[object]) -> None:
        """Run a function once for each of `turns` as soon as it is loaded; see `run`."""
        key = (block, function)
        if self._next_budget is not None:
            self._stop_loading()
            self.budget_bytes, self.schedules = self._next_budget
            self._next_budget = None
            self._cursor.leave()
        if not self._cursor.follows(key):
            self._enter(key)
        self._wait_for(key)
        self._running = True
        try:
            for _ in turns:
                self.engine.run(block, function)
        finally:
            self._running = False
            with self._change:
                self._cursor.ran()
                self._wake()

    def close(self) -> None:
        """End the thread, after the current load."""
        self._stop_loading()
        atexit.unregister(self.close)
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    def _count(self, base: int) -> None:
        """Set the bytes of everything but blocks, from those of the process without any."""
        turn = KINDS.load(self.plan.kind).turn_bytes(self.plan.host)
        self._base_bytes = base
        self.fixed_bytes = base + RESERVE_BYTES + self.timings.workspace_bytes + turn

    def _missing(self, size: int) -> int:
        budget = self.budget_bytes if self._next_budget is None else self._next_budget[0]
        return resident_bytes() + size + MARGIN_BYTES - budget

    def _evict_all(self) -> None:
        """Evict every function; the next run enters its pass again."""
        self._stop_loading()
        with self._change:
            self._evict(self._cursor.clear())
        return_freed()

    def _schedules(self, budget_bytes: int) -> dict[str, Schedule]:
        return schedules(self.timings, self.orders, self.fixed_bytes, budget_bytes)

    def _enter(self, key: Key) -> None:
        """Enter, or continue, the passes of a function."""
        self._stop_loading()
        with self._change:  # evictions come before any load
            self._evict(self._cursor.evictable())
            self._evict(self._cursor.enter(key, self.schedules))
            self._change.notify_all()

    def _wait_for(self, key: Key) -> None:
        """Wait until a function is loaded; the loop loads it if the thread does not.

        Raises:
            EdgeVLMError: The error of a load.
        """
        while True:
            with self._change:
                while not (key in self._cursor.in_memory or self._failed or self._may_load(False)):
                    self._change.wait()
                if self._failed is not None:
                    failed, self._failed = self._failed, None
                    self._cursor.leave()
                    raise failed
                if key in self._cursor.in_memory:
                    return
                task, self._loading = self._cursor.next_load(), True
            try:
                self._load(task)
            finally:  # Ctrl-C too
                with self._change:
                    self._loading = False
                    self._wake()

    def _load_ahead(self) -> None:
        """The thread: one load at a time, each when there is room for it."""
        while True:
            with self._change:
                while not self._closed and not self._may_load(ahead=True):
                    self._change.wait()
                if self._closed:
                    return
                task, self._loading = self._cursor.next_load(), True
            self._load(task)
            with self._change:
                self._loading = False
                self._change.notify_all()

    def _load(self, task: LoadTask) -> None:
        if task.streams:
            timing = self.timings.streamed(task.key)
        else:
            timing = self.timings.resident(task.key, task.runs)
        failed: BaseException | None = None
        try:
            with self._change:
                over = self._cursor.evictable()
            self._evict(over)
            self._wait_for_room(timing.bytes)
            self.engine.load(*task.key, timing.mode)
        except BaseException as cause:
            failed = cause
        with self._change:
            if failed is None:
                self._cursor.loaded(task.key, timing.bytes)
                self.loads += 1
            else:
                self._failed = failed
                self._cursor.drop_loads()

    def _wait_for_room(self, size: int) -> None:
        """Wait for the run if a load now would exceed the budget, as timings may be too low."""
        with self._change:
            while self._running and self.fixed_bytes:
                if resident_bytes() + size <= self.budget_bytes:
                    return
                self._change.wait()

    def _may_load(self, ahead: bool) -> bool:
        return not self._loading and self._failed is None and self._cursor.may_load(ahead)

    def _wake(self) -> None:
        """Wake the thread if it has work: a needless wake-up takes a core."""
        if self._loading or self._may_load(ahead=True):
            self._change.notify_all()

    def _stop_loading(self) -> None:
        """Drop queued loads and wait for the current one."""
        with self._change:
            self._cursor.drop_loads()
            while self._loading:
                self._change.wait()
            self._failed = None

    def _evict(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self.engine.unload(*key)
        if keys:
            return_freed()
