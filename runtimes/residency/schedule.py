"""The schedule of blocks in memory, fixed before anything runs. Pure logic without an engine.

A pass runs units in a fixed order, repeatedly: the views of an image, the chunks of a prompt, the
tokens of an answer, the steps of a denoiser. With room for all units each is loaded once. With
less, some are resident and the others stream: each is loaded ahead of its run, as early as there is
room, also for the next pass, and is evicted when its run is over. (If no core is free for loading,
a load ahead slows the run down: then each is loaded when the run before it is over.) For a cyclic
order that is the best fixed choice; the unit used last is the one needed last, so LRU would keep
none of them.

    room >= resident + every window of streamed units from the start of a load to the end of a run

The resident units are found by replaying the choices: all of them for few units, else by hill
climbing from the best of several starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgevlm.errors import PlanError

# Replayed passes; the last one is typical of all that follow.
PASSES = 4
# Up to FEW units all choices are tried, and up to PAIRS two units at a time are dropped.
FEW, PAIRS = 8, 16
STARTS = 3
# Least overlap speed at which loads run ahead. Threads that share cores slow each other down by
# more than they overlap: on two busy cores a token took 57 ms without loads ahead, 69 ms with them.
FREE = 0.85


@dataclass(frozen=True)
class Unit:
    """A function of a block in a pass: its bytes in memory, and its times without overlap.

    `load_ms` includes the eviction of an earlier unit. A run right after a load takes `first_ms`,
    any other run `run_ms`.
    """

    block: str
    function: str
    bytes: int
    load_ms: float
    first_ms: float
    run_ms: float


@dataclass(frozen=True)
class Load:
    """A streamed unit, by its position in the pass, and the run that must be over before its load.

    A negative `after` is in the pass before: -1 is its last run.
    """

    position: int
    after: int


@dataclass(frozen=True)
class Schedule:
    """Everything that an app needs to run a pass within a room, without further decisions.

    Attributes:
        units: The pass, in order.
        resident: Positions of the resident units.
        loads: The streamed units, in order; one load at a time, each once its `after` is over.
        room_bytes: Most bytes of all units.
        peak_bytes: Their peak.
        pass_ms: Predicted time of a pass, once the resident units are loaded.
        first_ms: Predicted time of the first pass, with nothing in memory.
    """

    units: tuple[Unit, ...]
    resident: tuple[int, ...]
    loads: tuple[Load, ...]
    room_bytes: int
    peak_bytes: int
    pass_ms: float
    first_ms: float


def minimum_bytes(units: Sequence[Unit]) -> int:
    """The least room in which a pass can run: the size of its largest unit."""
    return max((unit.bytes for unit in units), default=0)


def schedule(units: Sequence[Unit], room_bytes: int, overlap_speed: float = 1.0) -> Schedule:
    """The fastest schedule of a pass.

    Args:
        units: The pass, in order.
        room_bytes: Most bytes that they may take together.
        overlap_speed: Speed of a load and a run that overlap, relative to either alone: 1 if a
            core is free for loading. Below `FREE` each load waits for the run before.

    Raises:
        PlanError: If a unit is larger than the room.
    """
    units = tuple(units)
    if minimum_bytes(units) > room_bytes:
        raise PlanError(
            f"{room_bytes:,} bytes are too few for {max(units, key=lambda u: u.bytes).block},"
            f" expected at least {minimum_bytes(units):,}; raise the budget"
        )

    ahead = overlap_speed >= FREE

    def rate(resident: frozenset[int]) -> tuple[float, int]:
        streamed = [unit for i, unit in enumerate(units) if i not in resident]
        if ahead:
            times = replay(
                units, resident, _loads(units, resident, room_bytes), PASSES, overlap_speed
            )
            pass_ms = times[-1] - times[-2]
        else:
            pass_ms = sum(map(_saved, streamed))  # runs take the same for every choice
        return pass_ms, sum(unit.bytes for unit in streamed)

    every = frozenset(range(len(units)))
    fits = _fits(units, room_bytes)
    if fits(every):
        resident = every
    elif len(units) <= FEW:
        sizes = range(len(units))
        choices = (frozenset(c) for size in sizes for c in combinations(sizes, size))
        resident = min((c for c in choices if fits(c)), key=rate)
    else:
        resident = climb(len(units), fits, rate, _starts(units, fits))
    loads = _loads(units, resident, room_bytes, ahead)
    times = replay(units, resident, loads, PASSES, overlap_speed)
    return Schedule(
        units=units,
        resident=tuple(sorted(resident)),
        loads=loads,
        room_bytes=room_bytes,
        peak_bytes=_peak(units, resident, loads),
        pass_ms=times[-1] - times[-2],
        first_ms=times[0],
    )


def replay(
    units: Sequence[Unit],
    resident: frozenset[int],
    loads: Sequence[Load],
    passes: int,
    overlap_speed: float = 1.0,
) -> list[float]:
    """Simulated time in ms at the end of each pass, with nothing in memory before the first.

    One load and one run at a time; while they overlap each runs at `overlap_speed`.
    """
    count = len(units)
    # Loads in the order of need; the first pass loads resident units too.
    after = {load.position: load.after for load in loads}
    queue = [(i, after.get(i, -count)) for i in range(count)]
    queue += [
        (p * count + i, p * count + a) for p in range(1, passes + 1) for i, a in after.items()
    ]
    queue.sort()
    loaded = {p * count + i for p in range(1, passes) for i in resident}
    now, ends, run, at = 0.0, list[float](), 0, 0
    run_left = units[0].first_ms if units else 0.0
    load_left = units[queue[0][0] % count].load_ms if queue else 0.0
    while run < passes * count:
        loading = at < len(queue) and queue[at][1] < run
        running = run in loaded
        speed = overlap_speed if loading and running else 1.0
        step = min([load_left] * loading + [run_left] * running) / speed
        now += step
        if loading:
            load_left -= step * speed
            if load_left <= 1e-9:
                loaded.add(queue[at][0])
                at += 1
                load_left = units[queue[at][0] % count].load_ms if at < len(queue) else 0.0
        if running:
            run_left -= step * speed
            if run_left <= 1e-9:
                run += 1
                again = run >= count and run % count in resident
                unit = units[run % count]
                run_left = unit.run_ms if again else unit.first_ms
                if run % count == 0:
                    ends.append(now)
    return ends


def climb(
    count: int,
    fits: Callable[[frozenset[int]], bool],
    rate: Callable[[frozenset[int]], tuple[float, int]],
    starts: Sequence[frozenset[int]],
) -> frozenset[int]:
    """The best choice reached by steps that exchange one or two units for one."""

    def reached(best: frozenset[int]) -> frozenset[int]:
        known = rate(best)
        while True:
            dropped = [best, *(best - {i} for i in best)]
            dropped += [best - {*pair} for pair in combinations(best, 2)] if count <= PAIRS else []
            near = {d | {j} for d in dropped for j in range(count)} | set(dropped)
            best_near = min(((rate(c), sorted(c)) for c in near if fits(c)), default=(known, []))
            if best_near[0] >= known:
                return best
            known, best = best_near[0], frozenset(best_near[1])

    return min(map(reached, sorted(starts, key=rate)[:STARTS]), key=rate)


def _fits(units: Sequence[Unit], room_bytes: int) -> Callable[[frozenset[int]], bool]:
    """A test whether a choice leaves room for the largest other unit."""

    def fits(resident: frozenset[int]) -> bool:
        resident_bytes = sum(units[i].bytes for i in resident)
        return resident_bytes + max(
            (u.bytes for i, u in enumerate(units) if i not in resident), default=0
        ) <= (room_bytes)

    return fits


def _starts(units: Sequence[Unit], fits: Callable[[frozenset[int]], bool]) -> list[frozenset[int]]:
    """Choices to climb from: none, the units costliest to load, every second, third, … unit."""
    costliest = sorted(range(len(units)), key=lambda i: -_saved(units[i]) / max(units[i].bytes, 1))
    apart = [sorted(range(len(units)), key=lambda i: (i % gap, i)) for gap in (1, 2, 3, 4)]
    starts = [frozenset[int]()]
    for order in (costliest, *apart):
        resident = frozenset[int]()
        for i in order:
            if fits(resident | {i}):
                resident |= {i}
                starts.append(resident)
    return starts


def _saved(unit: Unit) -> float:
    """Time that a streamed unit adds to a pass without overlap."""
    return unit.load_ms + unit.first_ms - unit.run_ms


def _loads(
    units: Sequence[Unit], resident: frozenset[int], room_bytes: int, ahead: bool = True
) -> tuple[Load, ...]:
    """When each streamed unit may be loaded: as soon as those before it leave room.

    Without `ahead`, once the run before its own is over.
    """
    streamed = [i for i in range(len(units)) if i not in resident]
    if not ahead:
        return tuple(Load(unit, unit - 1) for unit in streamed)
    room, count = room_bytes - sum(units[i].bytes for i in resident), len(units)
    loads = []
    for rank, unit in enumerate(streamed):
        total, back = units[unit].bytes, 1
        # Units streamed before this one that may still be in memory when its load begins; at most
        # all others, for a unit leaves before it comes again.
        while back < len(streamed):
            before = units[streamed[rank - back]].bytes
            if total + before > room:
                break
            total, back = total + before, back + 1
        border = rank - back
        passes, index = divmod(border, len(streamed))
        loads.append(Load(unit, passes * count + streamed[index]))
    return tuple(loads)


def _peak(units: Sequence[Unit], resident: frozenset[int], loads: Sequence[Load]) -> int:
    """Peak bytes: resident units, and streamed units that are loading or running."""
    resident_bytes, count, most = sum(units[i].bytes for i in resident), len(units), 0
    for load in loads:
        # When its load begins, streamed units with runs between `after` and its own may be there.
        inside = [
            units[other.position].bytes
            for other in loads
            for shift in (-count, 0)
            if load.after < other.position + shift <= load.position
        ]
        most = max(most, sum(inside))
    return resident_bytes + most
