"""What it costs to open, run and evict a bundle's functions, in each form that the engine has.

    python tests/benchmarks/forms.py BUNDLE [--engine onnxruntime] [--rounds 3]

These are the costs that a budget is planned with, measured anew in each round: what comes and goes
where nothing stays, runs again where a third does. A figure is the sum over a pass, the median over
rounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.runtimes.residency.costs import passes
from edgevlm.runtimes.residency.measure import measure_costs

COLUMNS = ("bytes", "load_ms", "first_ms", "run_ms", "evict_ms")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    orders = passes(Bundle.open(asked.bundle).plan)
    found: dict[tuple[str, str], list[list[float]]] = {}
    for round_ in range(asked.rounds):
        print(f"round {round_ + 1}", file=sys.stderr)
        costs = measure_costs(asked.bundle, asked.engine, asked.threads).costs
        for name, keys in orders.items():
            for form in dict.fromkeys(c.form for c in costs if (c.block, c.function) in keys):
                mine = [c for c in costs if c.form == form and (c.block, c.function) in keys]
                sums = [sum(getattr(c, column) for c in mine) for column in COLUMNS]
                found.setdefault((name, form), []).append([len(mine), *sums])
    print("| a pass | form | functions | MB | load | first run | run again | evict |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for (name, form), rounds in found.items():
        count, size, *times = np.median(rounds, axis=0)
        cells = [f"{count:.0f}", f"{size / 1e6:.0f}", *(f"{t:.1f}" for t in times)]
        print(f"| {name} | {form} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
