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
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from edgevlm.bundle.cache import alone, cache_folder, keep, sha256
from edgevlm.bundle.documents import dumps, read, to_document
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import MANIFEST, Plan
from edgevlm.errors import EdgeVLMError, InputError, RuntimeLoadError
from edgevlm.libraries import python_command
from edgevlm.runtimes.engine import Engine, Key, find_engine
from edgevlm.runtimes.loading import bind_arrays
from edgevlm.runtimes.residency.memory import (
    forget_peak,
    peak_rss_bytes,
    resident_bytes,
    return_freed,
)
from edgevlm.runtimes.residency.samples import samples_of, typical
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
    if (timings := _cached(file)) is None:
        with alone("measured", lambda: progress("wait for another process that measures")):
            if (timings := _cached(file)) is None:
                progress(f"measure {len(bundle.plan.blocks)} blocks on this machine, once")
                timings = measure_timings(bundle.path, engine, threads, progress)
                keep(file, dumps(timings))
    return timings


def _cached(file: str) -> Timings | None:
    """Timings of the cache; None if there are none, or they are of another release."""
    try:
        return read(Timings, json.loads((cache_folder() / file).read_text("utf-8")), file)
    except (OSError, ValueError, InputError):
        return None


def measure_timings(
    bundle: Path, engine: str, threads: int, progress: Callable[[str], None] = lambda _: None
) -> Timings:
    """`measured`, without the cache.

    Raises:
        RuntimeLoadError: If they cannot be measured; the message has the first reason.
    """
    done = _apart(bundle, engine, threads, "measure", progress)
    if done.returncode:
        raise RuntimeLoadError(f"the blocks cannot be measured: {_reason(done)}")
    return read(Timings, json.loads(done.stdout), "timings")


def build_apart(
    bundle: Bundle, engine: Engine, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Build what loads read in a separate process, if timings are there and the files are not."""
    missing = [block.name for block in bundle.plan.blocks if not engine.is_built(block.name)]
    if missing:
        progress(f"prepare {len(missing)} blocks on this machine, once")
        # Loads report failures.
        _apart(bundle.path, engine.name, engine.threads or 1, "build", progress)


def measure_functions(
    plan: Plan[Any], engine: Engine, progress: Callable[[str], None] = lambda _: None
) -> Timings:
    """Measure functions in every load mode, of many that are alike some for all; arrays are bound.

    See `residency.samples`.
    """
    modes = {block.name: engine.load_modes(block.name) for block in plan.blocks}
    groups = {name: samples_of(plan, keys, modes) for name, keys in plan.passes.items()}
    rounds = [
        (name, mode, [key for key in keys if mode in modes[key[0]]])
        for name, keys in plan.passes.items()
        for mode in dict.fromkeys(m for key in keys for m in modes[key[0]])
    ]
    for name, mode, keys in rounds:
        for index, key in enumerate(keys):
            progress(f"prepare pass {name}, {mode}: {index + 1} of {len(keys)} functions")
            engine.prepare(*key, mode)
    return_freed()
    before = resident_bytes()
    timings: list[FunctionTiming] = []
    for name, mode, keys in rounds:
        samples = [group for group in groups[name] if mode in modes[group[0][0][0]]]
        chosen = {key for _, some in samples for key in some}
        ordered = [key for key in keys if key in chosen]
        steps = partial(_step, progress, f"measure pass {name}, {mode}")
        found = {(t.block, t.function): t for t in _timings(engine, ordered, mode, steps)}
        timings += [
            found.get(key) or typical(key, [found[one] for one in some])
            for alike, some in samples
            for key in alike
        ]
    return_freed()
    workspace = max(0, resident_bytes() - before)
    sequential = Timings(tuple(timings), workspace, {})
    speeds = _overlap_speeds(plan, engine, sequential, progress)
    return replace(sequential, overlap_speed=speeds)


def _step(progress: Callable[[str], None], title: str, index: int, count: int) -> None:
    progress(f"{title}: {index + 1} of {count} rounds")


def _timings(
    engine: Engine, keys: Sequence[Key], mode: str, step: Callable[[int, int], None]
) -> list[FunctionTiming]:
    """Times and bytes in passes as a budget has them: some functions resident, the others streamed.

    Each third in turn is resident, and its runs are timed. Its weights are then as far from the
    processor as later: in a cache for small models, in memory where the other functions displaced
    them since the last pass. Finally none is resident, and loads and evictions are timed, because
    functions in memory together may share working memory.
    """
    times = {key: {name: list[float]() for name in TIMES} for key in keys}
    for first in range(THIRDS + 1):
        step(first, THIRDS + 1)
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


def _overlap_speeds(
    plan: Plan[Any], engine: Engine, timings: Timings, progress: Callable[[str], None]
) -> dict[str, float]:
    """Speed of loads and runs that overlap, from passes with room for two functions."""
    speeds = {}
    for name, keys in plan.passes.items():
        progress(f"measure pass {name}: loads beside runs")
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
    bundle: Path, engine: str, threads: int, task: str, progress: Callable[[str], None]
) -> subprocess.CompletedProcess[str]:
    """Run `main` in a process of its own, which starts with this one's modules alone.

    Its lines of output are steps, but for one of JSON, which is in the result.
    """
    command = python_command(__name__, os.path.abspath(bundle), engine, str(threads), task)
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        document = ""
        for line in process.stdout or ():
            if line.startswith("{"):
                document = line
            else:
                progress(line.strip())
        code = process.wait()
        errors.seek(0)
        return subprocess.CompletedProcess(command, code, document, errors.read())


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why the process failed, in one line."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"signal {-done.returncode} ended the process, which is often too little memory"
    return lines[-1] if lines else f"the process ended with exit code {done.returncode}"


def _machine() -> str:
    return f"{platform.node()} {platform.machine()} {os.cpu_count()}"


def main() -> None:
    """The child process: a line for each step, and for `measure` one of JSON."""
    path, engine, threads, task = sys.argv[1:]
    step = partial(print, flush=True)
    try:
        bundle = Bundle.open(Path(path))
        runs = find_engine(engine)(bundle, int(threads))
        if task == "build":
            for index, block in enumerate(bundle.plan.blocks):
                step(f"prepare {block.name} ({index + 1} of {len(bundle.plan.blocks)})")
                runs.build(block.name)
            return
        bind_arrays(bundle.plan, runs)
        print(json.dumps(to_document(measure_functions(bundle.plan, runs, step))))
    except EdgeVLMError as cause:
        sys.exit(str(cause))  # on stderr
