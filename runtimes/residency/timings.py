"""Times of a bundle's functions on a machine, and the schedules for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgevlm.errors import PlanError
from edgevlm.runtimes.engine import Key
from edgevlm.runtimes.residency.schedule import Schedule, Unit, minimum_bytes, schedule

MARGIN = 1.01  # factor for measured bytes: the system's own memory for each mapping


@dataclass(frozen=True)
class FunctionTiming:
    """A measured function in one load mode: bytes in memory, times without overlap, files cached.

    `first_ms` is a run right after a load, which reads the pages of mapped weights; `evict_ms` is
    the time to free its memory.
    """

    block: str
    function: str
    mode: str
    bytes: int
    load_ms: float
    first_ms: float
    run_ms: float
    evict_ms: float


@dataclass(frozen=True)
class Timings:
    """Every function in every load mode, and the engine's working memory.

    `overlap_speed` is, for each pass, the speed of a load and a run that overlap, see
    `schedule.schedule`; 1 for a pass without an entry.
    """

    functions: tuple[FunctionTiming, ...]
    workspace_bytes: int
    overlap_speed: dict[str, float]

    def streamed(self, key: Key) -> FunctionTiming:
        """Timing of the mode with the shortest load, run and eviction together."""
        return min(self._by_key[key], key=lambda t: t.load_ms + t.first_ms + t.evict_ms)

    def resident(self, key: Key, runs: int | None = None) -> FunctionTiming:
        """Timing of the fastest mode for so many runs (None: many) in the memory of `streamed`."""
        most = 1.05 * self.streamed(key).bytes

        def takes(timing: FunctionTiming) -> float:
            start_ms = 0.0 if runs is None else timing.load_ms + timing.first_ms
            return start_ms + timing.run_ms * (1 if runs is None else runs - 1)

        return min((t for t in self._by_key[key] if t.bytes <= most), key=takes)

    def units(self, keys: Sequence[Key]) -> list[Unit]:
        """The functions of a pass."""
        pass_units = []
        for key in keys:
            streamed, resident = self.streamed(key), self.resident(key)
            most = int(MARGIN * max(streamed.bytes, resident.bytes))
            load = streamed.evict_ms + streamed.load_ms  # a load evicts first
            first = max(streamed.first_ms, resident.run_ms)
            pass_units.append(Unit(*key, most, load, first, resident.run_ms))
        return pass_units

    @cached_property
    def _by_key(self) -> dict[Key, list[FunctionTiming]]:
        by_key: dict[Key, list[FunctionTiming]] = {}
        for timing in self.functions:
            by_key.setdefault((timing.block, timing.function), []).append(timing)
        return by_key


def minimum_budget(timings: Timings, orders: Mapping[str, tuple[Key, ...]], fixed: int) -> int:
    """The smallest budget in bytes: `fixed` and the largest function."""
    return fixed + max(minimum_bytes(timings.units(keys)) for keys in orders.values())


def schedules(
    timings: Timings, orders: Mapping[str, tuple[Key, ...]], fixed_bytes: int, budget_bytes: int
) -> dict[str, Schedule]:
    """A schedule for each pass.

    Raises:
        PlanError: If the budget is too small; the message has the smallest one.
    """
    least = minimum_budget(timings, orders, fixed_bytes)
    if budget_bytes < least:
        raise PlanError(
            f"a budget of {budget_bytes / 1e6:.0f} MB is too small: {fixed_bytes / 1e6:.0f} MB are"
            f" taken before any block; the smallest budget is {-(-least // 10**6)} MB, less with"
            " smaller blocks (export --block-size)"
        )
    room = budget_bytes - fixed_bytes
    return {
        name: schedule(timings.units(keys), room, timings.overlap_speed.get(name, 1.0))
        for name, keys in orders.items()
    }
