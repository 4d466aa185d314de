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
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

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


def measured(
    bundle: Bundle, engine: str, threads: int, progress: Callable[[str], None] = lambda _: None
) -> Costs:
    """The costs of a bundle's functions, from the cache or measured now.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    module = ENGINES.load(engine)
    key = (sha256(bundle.path / MANIFEST), module.SUMMARY, _machine(), str(threads))
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
        self.plan, self.engine, self.loads, self.keys = bundle.plan, engine, 0, list[Key]()
        for keys in passes(bundle.plan).values():
            self.keys += keys
        self.costs: Costs

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function; their pages are touched, so that no run has to."""
        for array in arrays.values():
            array[...] = 0
        self.engine.bind(block, function, arrays)

    def open(self) -> None:
        """Measure."""
        return_freed()
        before = resident_bytes()
        found = [_cost(self.engine, key, form) for key in self.keys for form in self.engine.forms]
        return_freed()
        workspace = max(0, resident_bytes() - before)
        alone = Costs(tuple(found), workspace, {})
        self.costs = replace(alone, shares=_shares(self.plan, self.engine, alone))

    def begin(self, name: str, passes: int | None) -> None:
        """Nothing runs."""

    def run(self, block: str, function: str) -> None:
        """Nothing runs."""


def _cost(engine: Any, key: Key, form: str) -> Cost:
    """Loaded, run and evicted a few times; the first time warms files and working memory."""
    tried = [_once(engine, key, form) for _ in range(1 + LOADS)][1:]
    load, first, run, evict, size = (
        statistics.median(column) for column in zip(*tried, strict=True)
    )
    return Cost(*key, form, int(size), load * 1e3, first * 1e3, run * 1e3, evict * 1e3)


def _once(engine: Any, key: Key, form: str) -> tuple[float, float, float, float, int]:
    """Seconds to load, to run first, to run again and to evict; bytes in memory at most."""
    empty = resident_bytes()
    forget_peak()
    at = [time.perf_counter()]
    engine.load(*key, form)
    at.append(time.perf_counter())
    while len(at) < 2 + LEAST or (at[-1] - at[2] < RUN_S and len(at) < 2 + MOST):
        engine.run(*key)
        at.append(time.perf_counter())
    size = peak_rss_bytes() - empty
    ended = time.perf_counter()
    engine.unload(*key)
    return_freed()
    evict = time.perf_counter() - ended
    took = [b - a for a, b in pairwise(at)]
    return took[0], took[1], statistics.median(took[2:]), evict, max(0, size)


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
