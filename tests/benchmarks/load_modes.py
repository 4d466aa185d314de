"""What it takes to load, run and evict a bundle's functions, in each load mode of the engine.

    python tests/benchmarks/load_modes.py BUNDLE [--engine onnxruntime] [--rounds 3]

These are the timings that a budget is planned with, measured anew in each round: what comes and
goes where nothing stays, runs again where a third does. A figure is the sum over a pass, the median
over rounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.runtimes.residency.measure import measure_timings

COLUMNS = ("bytes", "load_ms", "first_ms", "run_ms", "evict_ms")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    orders = Bundle.open(asked.bundle).plan.passes
    found: dict[tuple[str, str], list[list[float]]] = {}
    for round_ in range(asked.rounds):
        print(f"round {round_ + 1}", file=sys.stderr)
        timings = measure_timings(asked.bundle, asked.engine, asked.threads).functions
        for name, keys in orders.items():
            for mode in dict.fromkeys(t.mode for t in timings if (t.block, t.function) in keys):
                mine = [t for t in timings if t.mode == mode and (t.block, t.function) in keys]
                sums = [sum(getattr(t, column) for t in mine) for column in COLUMNS]
                found.setdefault((name, mode), []).append([len(mine), *sums])
    print("| a pass | load mode | functions | MB | load | first run | run again | evict |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for (name, mode), rounds in found.items():
        count, size, *times = np.median(rounds, axis=0)
        cells = [f"{count:.0f}", f"{size / 1e6:.0f}", *(f"{t:.1f}" for t in times)]
        print(f"| {name} | {mode} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
