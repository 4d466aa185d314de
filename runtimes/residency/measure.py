"""Bytes, load time and run time of each function of a bundle on this machine.

They are measured once, in a separate process, so that neither the packing of matrices nor the
measurement counts in the memory of the process that runs the bundle. The cache folder keeps them by
bundle, engine, release, processor and threads.
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgevlm.bundle.cache import cache_folder, keep, sha256
from edgevlm.bundle.documents import dumps, read, to_document
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import MANIFEST, Plan
from edgevlm.errors import RuntimeLoadError
from edgevlm.libraries import python_command
from edgevlm.runtimes.engine import Engine, Key, find_engine
from edgevlm.runtimes.loading import bind_arrays
from edgevlm.runtimes.residency.memory import (
    forget_peak,
    peak_rss_bytes,
    resident_bytes,
    return_freed,
)
from edgevlm.runtimes.residency.schedule import PASSES, Schedule, replay
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.runtimes.residency.timings import FunctionTiming, Timings
from edgevlm.version import VERSION

FORMAT = 2  # of the cached document
TIMES = ("load", "first", "run", "evict", "bytes")
# Each pass is repeated REPEATS times with each third of its functions resident, and STREAMED times
# with none, after one that warms files and working memory.
THIRDS, REPEATS, STREAMED = 3, 2, 4
LEAST_SPEED = 0.2


def measured(
    bundle: Bundle, engine: str, threads: int, progress: Callable[[str], None] = lambda _: None
) -> Timings:
    """Timings of a bundle's functions, from the cache or measured now.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    machine = (find_engine(engine).summary(), _machine(), str(threads))
    key = (f"{VERSION}, format {FORMAT}", sha256(bundle.path / MANIFEST), *machine)
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    file = f"measured/{name}.json"
    try:
        return read(Timings, json.loads((cache_folder() / file).read_text("utf-8")), file)
    except (OSError, ValueError):
        pass  # not cached, or of another release
    progress(f"measure {len(bundle.plan.blocks)} blocks on this machine, once")
    timings = measure_timings(bundle.path, engine, threads)
    keep(file, dumps(timings))
    return timings


def measure_timings(bundle: Path, engine: str, threads: int) -> Timings:
    """`measured`, without the cache.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    done = _apart(bundle, engine, threads, "measure")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise RuntimeLoadError(f"the blocks cannot be measured: {reason}")
    return read(Timings, json.loads(done.stdout.splitlines()[-1]), "timings")


def build_apart(
    bundle: Bundle, engine: Engine, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Build what loads read in a separate process, if timings are there and the files are not."""
    missing = [block.name for block in bundle.plan.blocks if not engine.is_built(block.name)]
    if missing:
        progress(f"prepare {len(missing)} blocks on this machine, once")
        _apart(bundle.path, engine.name, engine.threads or 1, "build")  # loads report failures


def measure_functions(plan: Plan[Any], engine: Engine) -> Timings:
    """Measure every function in every load mode; the engine's arrays are bound."""
    groups = [
        (mode, [key for key in keys if mode in engine.load_modes(key[0])])
        for keys in plan.passes.values()
        for mode in dict.fromkeys(m for key in keys for m in engine.load_modes(key[0]))
    ]
    for mode, keys in groups:
        for key in keys:
            engine.prepare(*key, mode)
    return_freed()
    before = resident_bytes()
    timings = [timing for mode, keys in groups for timing in _timings(engine, keys, mode)]
    return_freed()
    workspace = max(0, resident_bytes() - before)
    sequential = Timings(tuple(timings), workspace, {})
    return replace(sequential, overlap_speed=_overlap_speeds(plan, engine, sequential))


def _timings(engine: Engine, keys: Sequence[Key], mode: str) -> list[FunctionTiming]:
    """Times and bytes in passes as a budget has them: some functions resident, the others streamed.

    Each third in turn is resident, and its runs are timed. Its weights are then as far from the
    processor as later: in a cache for small models, in memory where the other functions displaced
    them since the last pass. Finally none is resident, and loads and evictions are timed, because
    functions in memory together may share working memory.
    """
    times = {key: {name: list[float]() for name in TIMES} for key in keys}
    for first in range(THIRDS + 1):
        resident = set(keys[first::THIRDS]) if first < THIRDS else set()
        for key in resident:
            engine.load(*key, mode)
        for repetition in range(1 + (REPEATS if first < THIRDS else STREAMED)):
            for key in keys:
                if key in resident:
                    measured_s = {"run": _timed(engine.run, *key)}
                else:
                    measured_s = _load_run_evict(engine, key, mode)
                if repetition and ("run" in measured_s or first == THIRDS):
                    for name, value in measured_s.items():
                        times[key][name].append(value)
        for key in resident:
            engine.unload(*key)
        return_freed()
    timings = []
    for key in keys:
        *seconds, sizes = (times[key][name] for name in TIMES)
        times_ms = (1e3 * statistics.median(t) for t in seconds)
        timings.append(FunctionTiming(*key, mode, int(max(sizes)), *times_ms))
    return timings


def _load_run_evict(engine: Engine, key: Key, mode: str) -> dict[str, float]:
    """Seconds to load, run and evict a function, and its peak bytes in memory."""
    empty = resident_bytes()
    forget_peak()
    load, first = _timed(engine.load, *key, mode), _timed(engine.run, *key)
    size = max(0, peak_rss_bytes() - empty)
    evict = _timed(engine.unload, *key) + _timed(return_freed)
    return {"load": load, "first": first, "evict": evict, "bytes": size}


def _timed(action: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def _overlap_speeds(plan: Plan[Any], engine: Engine, timings: Timings) -> dict[str, float]:
    """Speed of loads and runs that overlap, from passes with room for two functions."""
    speeds = {}
    for name, keys in plan.passes.items():
        units = timings.units(keys)
        if len(units) < 3:
            continue
        largest, second = sorted((unit.bytes for unit in units), reverse=True)[:2]
        blocks = StreamedBlocks(plan, engine, timings, largest + second, {name: keys})
        blocks.start()
        blocks.expect(name, 1 + PASSES)
        ends = []
        for _ in range(1 + PASSES):
            for key in keys:
                blocks.run(*key)
            ends.append(time.perf_counter())
        blocks.close()
        for key in keys:
            engine.unload(*key)
        pass_ms = 1e3 * statistics.median(b - a for a, b in pairwise(ends))
        speeds[name] = _fitting(blocks.schedules[name], pass_ms)
    return speeds


def _fitting(schedule: Schedule, pass_ms: float) -> float:
    """The overlap speed with which a replay of the schedule takes `pass_ms`."""
    low, high = LEAST_SPEED, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        times = replay(schedule.units, frozenset(schedule.resident), schedule.loads, PASSES, middle)
        low, high = (low, middle) if times[-1] - times[-2] < pass_ms else (middle, high)
    return round(low, 3)


def _apart(
    bundle: Path, engine: str, threads: int, task: str
) -> subprocess.CompletedProcess[str]:
    """Run `main` in a process of its own, which starts with this one's modules alone."""
    command = python_command(__name__, os.path.abspath(bundle), engine, str(threads), task)
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _machine() -> str:
    return f"{platform.node()} {platform.machine()} {os.cpu_count()}"


def main() -> None:
    """The child process: `measure` prints one JSON line, `build` nothing."""
    path, engine, threads, task = sys.argv[1:]
    bundle = Bundle.open(Path(path))
    runs = find_engine(engine)(bundle, int(threads))
    if task == "build":
        for block in bundle.plan.blocks:
            runs.build(block.name)
        return
    bind_arrays(bundle.plan, runs)
    print(json.dumps(to_document(measure_functions(bundle.plan, runs))))
