"""What the functions of a bundle cost on a machine, and the schedules that follow for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgevlm.errors import PlanError
from edgevlm.runtimes.residency.schedule import Schedule, Unit, minimum_bytes, schedule

Key = tuple[str, str]  # block, function
MARGIN = 1.01  # of measured bytes: what the system keeps for each mapping is seen in the sum


@dataclass(frozen=True)
class Cost:
    """A function in one form, measured: bytes in memory, and times alone with warm files.

    `first_ms` is a run right after a load, which reads the pages of mapped weights; `evict_ms` is
    what it takes to give the memory back.
    """

    block: str
    function: str
    form: str
    bytes: int
    load_ms: float
    first_ms: float
    run_ms: float
    evict_ms: float


@dataclass(frozen=True)
class Costs:
    """What `measuring` found: every function in every form, and the engine's working memory.

    `shares` says, for each pass, how fast a load and a run are beside each other, see
    `loader.schedule`; 1 for a pass that is not there.
    """

    costs: tuple[Cost, ...]
    workspace_bytes: int
    shares: dict[str, float]

    def streamed(self, key: Key) -> Cost:
        """The form that is loaded, run once and evicted soonest."""
        return min(self._forms(key), key=lambda c: c.load_ms + c.first_ms + c.evict_ms)

    def kept(self, key: Key, times: int | None = None) -> Cost:
        """The form that is best for so many runs (None: many), in no more memory."""
        most = 1.05 * self.streamed(key).bytes

        def takes(cost: Cost) -> float:
            begun = 0.0 if times is None else cost.load_ms + cost.first_ms
            return begun + cost.run_ms * (1 if times is None else times - 1)

        return min((cost for cost in self._forms(key) if cost.bytes <= most), key=takes)

    def units(self, keys: Sequence[Key]) -> list[Unit]:
        """The functions of a pass."""
        found = []
        for key in keys:
            streamed, kept = self.streamed(key), self.kept(key)
            most = int(MARGIN * max(streamed.bytes, kept.bytes))
            load = streamed.evict_ms + streamed.load_ms  # who loads evicts what is over
            first = max(streamed.first_ms, kept.run_ms)
            found.append(Unit(*key, most, load, first, kept.run_ms))
        return found

    def _forms(self, key: Key) -> list[Cost]:
        return self._of[key]

    @cached_property
    def _of(self) -> dict[Key, list[Cost]]:
        found: dict[Key, list[Cost]] = {}
        for cost in self.costs:
            found.setdefault((cost.block, cost.function), []).append(cost)
        return found


def minimum_budget(costs: Costs, orders: Mapping[str, tuple[Key, ...]], fixed_bytes: int) -> int:
    """The smallest budget: what is there anyway, and the largest function."""
    return fixed_bytes + max(minimum_bytes(costs.units(keys)) for keys in orders.values())


def schedules(
    costs: Costs, orders: Mapping[str, tuple[Key, ...]], fixed_bytes: int, budget_bytes: int
) -> dict[str, Schedule]:
    """A schedule for each pass.

    Raises:
        PlanError: If the budget is too small; it says which one would do.
    """
    least = minimum_budget(costs, orders, fixed_bytes)
    if budget_bytes < least:
        raise PlanError(
            f"a budget of {budget_bytes / 1e6:.0f} MB is too small: {fixed_bytes / 1e6:.0f} MB are"
            f" taken before any block; the smallest budget is {-(-least // 10**6)} MB, less with"
            " smaller blocks (export --block-size)"
        )
    room = budget_bytes - fixed_bytes
    return {
        name: schedule(costs.units(keys), room, costs.shares.get(name, 1.0))
        for name, keys in orders.items()
    }
