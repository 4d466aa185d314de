"""What each function of a bundle takes on this machine: bytes, time to load, time to run.

It is measured once, by a process of its own, so that neither the packing of matrices nor the
measuring counts in the memory of who runs the bundle; the cache folder keeps it by bundle, engine,
release, processor and threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgevlm import __version__
from edgevlm.bundle import Bundle, sha256
from edgevlm.cache import cache_folder, keep
from edgevlm.documents import dumps, read, to_document
from edgevlm.errors import RuntimeLoadError
from edgevlm.manifest import MANIFEST
from edgevlm.plan import Plan
from edgevlm.registry import ENGINES
from edgevlm.runtimes.costs import Cost, Costs, Key, passes
from edgevlm.runtimes.loader import PASSES, Schedule, replay
from edgevlm.runtimes.memory import forget_peak, peak_rss_bytes, resident_bytes, return_freed
from edgevlm.runtimes.streaming import Array, Streamed
from edgevlm.runtimes.text import TextLoop

# How often a function is loaded, and how long and how often it runs each time.
LOADS, RUN_S, LEAST, MOST = 3, 0.05, 2, 8
LEAST_SHARE = 0.2
CACHES = 64 * 10**6  # bytes


def measured(
    bundle: Bundle, engine: str, threads: int, progress: Callable[[str], None] = lambda _: None
) -> Costs:
    """The costs of a bundle's functions, from the cache or measured now.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    module = ENGINES.load(engine)
    machine = (module.SUMMARY, _machine(), str(threads))
    key = (__version__, sha256(bundle.path / MANIFEST), *machine)
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    kept = cache_folder() / "measured" / f"{name}.json"
    try:
        return read(Costs, json.loads(kept.read_text("utf-8")), kept.name)
    except (OSError, ValueError):
        pass  # not there, or of another release
    progress(f"measure {len(bundle.plan.blocks)} blocks on this machine, once")
    command = [sys.executable, "-m", __name__, str(bundle.path), engine, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise RuntimeLoadError(f"the blocks cannot be measured: {said}")
    costs = read(Costs, json.loads(done.stdout.splitlines()[-1]), "costs")
    keep(kept, dumps(costs))
    return costs


class Measured:
    """Blocks for a loop that only binds: `open` measures every function in every form."""

    keeps_all = False

    def __init__(self, bundle: Bundle, engine: Any) -> None:
        self.plan, self.engine, self.loads = bundle.plan, engine, 0
        self.costs: Costs

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function; their pages are touched, so that no run has to."""
        for array in arrays.values():
            array[...] = 0
        self.engine.bind(block, function, arrays)

    def open(self) -> None:
        """Measure."""
        groups = [
            (form, group)
            for keys in passes(self.plan).values()
            for form in dict.fromkeys(f for key in keys for f in self.engine.forms(key[0]))
            for group in _groups(self.plan, [k for k in keys if form in self.engine.forms(k[0])])
        ]
        for form, group in groups:
            for key in group:
                self.engine.prepare(*key, form)
        return_freed()
        before = resident_bytes()
        found = [cost for form, group in groups for cost in _costs(self.engine, group, form)]
        return_freed()
        workspace = max(0, resident_bytes() - before)
        alone = Costs(tuple(found), workspace, {})
        self.costs = replace(alone, shares=_shares(self.plan, self.engine, alone))

    def begin(self, name: str, passes: int | None) -> None:
        """Nothing runs."""

    def run(self, block: str, function: str) -> None:
        """Nothing runs."""


def _groups(plan: Plan, keys: Sequence[Key]) -> Iterator[tuple[Key, ...]]:
    """Functions of a pass in its order, as many together as no processor keeps in a cache.

    In a pass, what a run reads was last read a pass ago; alone it would find it where it left it.
    """
    group, held = list[Key](), 0
    for key in keys:
        group.append(key)
        held += plan.block(key[0]).weights_bytes
        if held > CACHES:
            yield tuple(group)
            group, held = [], 0
    if group:
        yield tuple(group)


def _costs(engine: Any, keys: Sequence[Key], form: str) -> list[Cost]:
    """Loaded, run and evicted a few times; the first time warms files and working memory."""
    tried = [_once(engine, keys, form) for _ in range(1 + LOADS)][1:]
    found = []
    for key in keys:
        columns = zip(*(once[key] for once in tried), strict=True)
        load, first, run, evict, size = (statistics.median(column) for column in columns)
        found.append(Cost(*key, form, int(size), load * 1e3, first * 1e3, run * 1e3, evict * 1e3))
    return found


def _once(engine: Any, keys: Sequence[Key], form: str) -> dict[Key, tuple[float, ...]]:
    """Of each: seconds to load, to run first, to run again, to evict; bytes in memory at most."""
    begun, sizes = dict[Key, tuple[float, float]](), dict[Key, int]()
    for key in keys:
        empty = resident_bytes()
        forget_peak()
        load = _timed(engine.load, *key, form)
        begun[key] = load, _timed(engine.run, *key)
        sizes[key] = max(0, peak_rss_bytes() - empty)
    runs, started = {key: list[float]() for key in keys}, time.perf_counter()
    for index in range(MOST):
        for key in keys:
            runs[key].append(_timed(engine.run, *key))
        if index + 1 >= LEAST and time.perf_counter() - started > RUN_S * len(keys):
            break
    gone = {key: _timed(engine.unload, *key) + _timed(return_freed) for key in keys}
    return {key: (*begun[key], statistics.median(runs[key]), gone[key], sizes[key]) for key in keys}


def _timed(action: Callable[..., object], *given: object) -> float:
    started = time.perf_counter()
    action(*given)
    return time.perf_counter() - started


def _shares(plan: Plan, engine: Any, costs: Costs) -> dict[str, float]:
    """How fast loads and runs are beside each other, from passes with room for two functions."""
    found = {}
    for name, keys in passes(plan).items():
        units = costs.units(keys)
        if len(units) < 3:
            continue
        largest, second = sorted((unit.bytes for unit in units), reverse=True)[:2]
        blocks = Streamed(plan, engine, costs, 0)
        blocks.orders = {name: keys}
        blocks.budget_bytes = largest + second
        blocks.start()
        blocks.begin(name, 1 + PASSES)
        at = []
        for _ in range(1 + PASSES):
            for key in keys:
                blocks.run(*key)
            at.append(time.perf_counter())
        blocks.close()
        for key in keys:
            engine.unload(*key)
        took = 1e3 * statistics.median(b - a for a, b in pairwise(at))
        found[name] = _fitting(blocks.schedules[name], took)
    return found


def _fitting(made: Schedule, took_ms: float) -> float:
    """The share with which a replay of the schedule takes as long."""
    low, high = LEAST_SHARE, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        times = replay(made.units, frozenset(made.kept), made.loads, PASSES, middle)
        low, high = (low, middle) if times[-1] - times[-2] < took_ms else (middle, high)
    return round(low, 3)


def _machine() -> str:
    return f"{platform.node()} {platform.machine()} {os.cpu_count()}"


def main() -> None:
    """`python -m edgevlm.runtimes.measuring BUNDLE ENGINE THREADS`: costs as one JSON line."""
    path, engine, threads = sys.argv[1:]
    bundle = Bundle.open(Path(path))
    blocks = Measured(bundle, ENGINES.load(engine).Engine(bundle, int(threads)))
    TextLoop(bundle, blocks)
    print(json.dumps(to_document(blocks.costs)))


if __name__ == "__main__":
    main()
