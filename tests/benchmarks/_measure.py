"""What the benchmarks share: a bundle made once, runs in alternation, and a table that says where.

Numbers of a shared machine drift by half within minutes, so cases run in rounds (A B C A B C …) and
a ratio is the median of the ratios of each round, never a ratio of two tables.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.pipeline import export
from edgevlm.recipe import Recipe
from edgevlm.registry import engine_for
from edgevlm.runtimes.engine import PRIVATE, find_engine
from edgevlm.runtimes.loops.sequence import text_rows
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.residency.resident import ResidentBlocks

# Long enough for the threads of one engine to stop spinning before another one is measured.
PAUSE_S = 0.2


@dataclass(frozen=True)
class Row:
    """One line of a table; `ratio` is against the line's reference, None where it is one itself."""

    name: str
    n: int
    median_ms: float
    p90_ms: float
    ratio: float | None


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--model", required=True, help="checkpoint folder or hub id")
    made.add_argument("--work", required=True, type=Path, help="folder that keeps the exports")
    made.add_argument("--repeats", type=int, default=9, help="rounds after two warm-ups")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--json", action="store_true", help="last line: one JSON document")
    return made


def bundle(recipe: Recipe, work: Path) -> Bundle:
    """The bundle of `recipe` in `work`, exported and verified if it is not there yet."""
    rows, columns = recipe.tiles
    chunk = f"-chunk-{recipe.chunk}" if recipe.chunk else ""
    quantize = () if str(recipe.quantize) == "none" else (recipe.quantize,)
    chunk += f"-check-{recipe.speculate}" if recipe.speculate else ""
    methods = "".join("-" + re.sub(r"\W+", "-", str(part)) for part in (*recipe.methods, *quantize))
    target = "" if recipe.target == "onnx" else f"{recipe.target}-"
    path = work / f"{target}{rows}x{columns}-{recipe.tokens or 'all'}{chunk}{methods}.edgevlm"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        say(f"export {path.name}")
        export(recipe, path, progress=lambda line: say(f"  {line}"))
    found = Bundle.open(path)
    if found.plan.recipe != recipe:
        raise SystemExit(f"{path} was made from another recipe; give another --work or remove it")
    return found


class PartialEngine:
    """An engine without the stages that a measurement leaves out, so that several bundles fit."""

    def __init__(self, engine: Any, without: Sequence[str]) -> None:
        self._engine, self._without = engine, without

    def load(self, block: str, function: str | None = None, mode: str = PRIVATE) -> None:
        """Open a block unless its stage is left out."""
        if self._engine.bundle.plan.block(block).stage not in self._without:
            self._engine.load(block, function, mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def open_loop(found: Bundle, threads: int, without: Sequence[str] = ()) -> TextLoop:
    """The text loop over a bundle, without some stages, on the engine of its target."""
    engine = find_engine(engine_for(found.plan.recipe.target))(found, threads)
    return TextLoop(found, ResidentBlocks(found.plan, PartialEngine(engine, without)))


def prefill(loop: TextLoop, count: int) -> Callable[[], None]:
    """A prompt of `count` random rows into an empty cache."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((count, loop.table.shape[1])).astype(np.float32)
    piece = text_rows(loop.plan, rows)

    def run() -> None:
        loop.reset()
        loop.prefill(piece)

    return run


def token(loop: TextLoop) -> Callable[[], None]:
    """One token; the cache holds what the prefill of the same round left."""
    row = np.asarray(loop.table[:1])

    def run() -> None:
        loop.prefill(text_rows(loop.plan, row, loop.position))
        loop.logits()

    return run


def rounds(
    cases: Mapping[str, Callable[[], Any]], repeats: int, warmups: int = 2
) -> dict[str, list[float]]:
    """Milliseconds of each case, run in alternation; a case may return its own ms instead."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(warmups + repeats):
        for name, action in cases.items():
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            own = action()
            spent = own if isinstance(own, float) else (time.perf_counter() - started) * 1e3
            if index >= warmups:
                times[name].append(spent)
        say(f"  round {index + 1} of {warmups + repeats}")
    return times


def row(name: str, times: Sequence[float], reference: Sequence[float] | None = None) -> Row:
    """A table line; the ratio is the median over rounds of reference / times."""
    ratio = None
    if reference is not None:
        ratio = float(np.median(np.asarray(reference) / np.asarray(times)))
    return Row(name, len(times), float(np.median(times)), float(np.percentile(times, 90)), ratio)


def machine(threads: int) -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    packages = ("edgevlm", "onnxruntime", "executorch", "torch", "transformers", "numpy")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": "float32",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def report(title: str, rows: Sequence[Row], where: Mapping[str, Any], ratio: str) -> None:
    """Print a table as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v)
    print(f"\n{title}\n\n| | n | median ms | p90 ms | {ratio} |\n|---|---:|---:|---:|---:|")
    for r in rows:
        shown = "" if r.ratio is None else f"{r.ratio:.3g}"
        print(f"| {r.name} | {r.n} | {r.median_ms:.2f} | {r.p90_ms:.2f} | {shown} |")
    print(
        f"\n{where['date']}, {where['processor']}, {where['threads']} threads, {where['dtype']},"
        f" {versions}; load average {where['load_average']} at the start"
    )


def finish(as_json: bool, document: Mapping[str, Any]) -> None:
    """Print the JSON document if it was asked for."""
    if as_json:
        print(json.dumps(document, default=asdict))


def say(line: str) -> None:
    """Progress for a person."""
    print(line, file=sys.stderr, flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
