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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import cache_folder, keep
from edgevlm.bundle.documents import dumps, read, to_document
from edgevlm.bundle.files import Bundle, sha256
from edgevlm.bundle.plan import MANIFEST, Plan
from edgevlm.errors import RuntimeLoadError
from edgevlm.registry import ENGINES
from edgevlm.runtimes.engine import Array
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.residency.costs import Cost, Costs, Key
from edgevlm.runtimes.residency.memory import (
    forget_peak,
    peak_rss_bytes,
    resident_bytes,
    return_freed,
)
from edgevlm.runtimes.residency.schedule import PASSES, Schedule, replay
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.version import VERSION

TIMES = ("load", "first", "run", "evict", "bytes")
# A pass is repeated so often with each third of its functions kept, and so often with none, after
# one that warms files and working memory.
THIRDS, REPEATS, STREAMED = 3, 2, 4
LEAST_SHARE = 0.2


def measured(
    bundle: Bundle, engine: str, threads: int, progress: Callable[[str], None] = lambda _: None
) -> Costs:
    """The costs of a bundle's functions, from the cache or measured now.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    module = ENGINES.load(engine)
    machine = (module.SUMMARY, _machine(), str(threads))
    key = (VERSION, sha256(bundle.path / MANIFEST), *machine)
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    kept = cache_folder() / "measured" / f"{name}.json"
    try:
        return read(Costs, json.loads(kept.read_text("utf-8")), kept.name)
    except (OSError, ValueError):
        pass  # not there, or of another release
    progress(f"measure {len(bundle.plan.blocks)} blocks on this machine, once")
    costs = measure_costs(bundle.path, engine, threads)
    keep(kept, dumps(costs))
    return costs


def measure_costs(bundle: Path, engine: str, threads: int) -> Costs:
    """`measured`, now and not kept.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    command = [sys.executable, "-m", __name__, str(bundle), engine, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise RuntimeLoadError(f"the blocks cannot be measured: {said}")
    return read(Costs, json.loads(done.stdout.splitlines()[-1]), "costs")


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
            (form, [key for key in keys if form in self.engine.forms(key[0])])
            for keys in self.plan.passes.values()
            for form in dict.fromkeys(f for key in keys for f in self.engine.forms(key[0]))
        ]
        for form, keys in groups:
            for key in keys:
                self.engine.prepare(*key, form)
        return_freed()
        before = resident_bytes()
        found = [cost for form, keys in groups for cost in _costs(self.engine, keys, form)]
        return_freed()
        workspace = max(0, resident_bytes() - before)
        alone = Costs(tuple(found), workspace, {})
        self.costs = replace(alone, shares=_shares(self.plan, self.engine, alone))

    def begin(self, name: str, passes: int | None) -> None:
        """Nothing runs."""

    def run(self, block: str, function: str) -> None:
        """Nothing runs."""


def _costs(engine: Any, keys: Sequence[Key], form: str) -> list[Cost]:
    """Times and bytes in passes as a budget makes them: some functions stay, the others stream.

    In turn each third stays, and its runs are timed. What they read is then as far from the
    processor as it will be: in a cache for small models, in memory where the others have pushed it
    out since the last pass. At last nothing stays, and what it takes to come and go is timed:
    functions that are there together may have working memory in common.
    """
    times = {key: {name: list[float]() for name in TIMES} for key in keys}
    for first in range(THIRDS + 1):
        kept = set(keys[first::THIRDS]) if first < THIRDS else set()
        for key in kept:
            engine.load(*key, form)
        for repetition in range(1 + (REPEATS if first < THIRDS else STREAMED)):
            for key in keys:
                if key in kept:
                    once = {"run": _timed(engine.run, *key)}
                else:
                    once = _once(engine, key, form)
                if repetition and ("run" in once or first == THIRDS):
                    for name, value in once.items():
                        times[key][name].append(value)
        for key in kept:
            engine.unload(*key)
        return_freed()
    found = []
    for key in keys:
        *seconds, sizes = (times[key][name] for name in TIMES)
        times_ms = (1e3 * statistics.median(t) for t in seconds)
        found.append(Cost(*key, form, int(max(sizes)), *times_ms))
    return found


def _once(engine: Any, key: Key, form: str) -> dict[str, float]:
    """Seconds to load, run and evict a function, and bytes in memory at most."""
    empty = resident_bytes()
    forget_peak()
    load, first = _timed(engine.load, *key, form), _timed(engine.run, *key)
    size = max(0, peak_rss_bytes() - empty)
    evict = _timed(engine.unload, *key) + _timed(return_freed)
    return {"load": load, "first": first, "evict": evict, "bytes": size}


def _timed(action: Callable[..., object], *given: object) -> float:
    started = time.perf_counter()
    action(*given)
    return time.perf_counter() - started


def _shares(plan: Plan[Any], engine: Any, costs: Costs) -> dict[str, float]:
    """How fast loads and runs are beside each other, from passes with room for two functions."""
    found = {}
    for name, keys in plan.passes.items():
        units = costs.units(keys)
        if len(units) < 3:
            continue
        largest, second = sorted((unit.bytes for unit in units), reverse=True)[:2]
        blocks = StreamedBlocks(plan, engine, costs, 0)
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
    """`python -m edgevlm.runtimes.residency.measure BUNDLE ENGINE THREADS`: one JSON line."""
    path, engine, threads = sys.argv[1:]
    bundle = Bundle.open(Path(path))
    blocks = Measured(bundle, ENGINES.load(engine).Engine(bundle, int(threads)))
    TextLoop(bundle, blocks)
    print(json.dumps(to_document(blocks.costs)))


if __name__ == "__main__":
    main()
