"""Write docs/methods.md: what each method is, what it costs, and what it answers.

    python tests/benchmarks/methods.py --sweep SWEEP.csv --out docs/methods.md

Cost is that of `reduce` alone at site `tokens`: one square grid of 576 tokens (24 x 24) and five of
them as 2 x 2 tiles and their thumbnail (2,880), C = 576 (SmolVLM-256M's), random features and
signals, in rounds over all methods. Accuracy is read from `edgevlm evaluate embedded --sweep
tokens=24,49,98 --methods all -o SWEEP`: 1/8, 1/4 and 1/2 of the embedded model's 196 tokens.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _measure import machine, rounds, say

from edgevlm.blocks import ReduceBlock
from edgevlm.compress._primitives import VisualShape
from edgevlm.errors import PlanError
from edgevlm.plan import Block, Function, Tensor
from edgevlm.registry import METHODS, TARGETS, sites_of
from edgevlm.trace import trace, weights

CHANNELS = 576
SHAPES = {
    576: VisualShape(((24, 24),), CHANNELS),
    2880: VisualShape(((24, 24),) * 5, CHANNELS, (2, 2), "first"),
}
KEPT = (64, 128, 192)
SHARES = {24: "1/8", 49: "1/4", 98: "1/2"}
# A greedy loop of more steps makes a graph that nobody wants to wait for.
SLOW_NODES = 4000


def main() -> None:
    """Measure, read the sweep, write the page."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--sweep", type=Path, required=True, help="CSV of a sweep")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--repeats", type=int, default=9, help="rounds after two warm-ups")
    made.add_argument("--threads", type=int, default=2)
    options = made.parse_args()
    modules = {name: METHODS.load(name) for name in METHODS.names()}
    where = machine(options.threads)
    costs, nodes = measure(modules, options.repeats, options.threads)
    accuracy = read_sweep(options.sweep)
    options.out.write_text(page(modules, costs, nodes, accuracy, where))
    say(f"{options.out} written")


def measure(
    modules: dict[str, ModuleType], repeats: int, threads: int
) -> tuple[dict[tuple[str, int, int], float], dict[tuple[str, int, int], int]]:
    """Median ms and nodes of `reduce` by method, N and K; what cannot be made is left out."""
    cases: dict[str, Callable[[], object]] = {}
    nodes: dict[tuple[str, int, int], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in modules.items():
            for total, shape in SHAPES.items():
                for kept in KEPT:
                    made = session(name, module, shape, kept, threads, Path(folder))
                    if made is not None:
                        cases[f"{name} {total} {kept}"], nodes[name, total, kept] = made
        times = rounds(cases, repeats)
    found = {}
    for key, spent in times.items():
        name, total, kept = key.split()
        found[name, int(total), int(kept)] = float(np.median(spent))
    return found, nodes


def session(
    name: str, module: ModuleType, shape: VisualShape, kept: int, threads: int, folder: Path
) -> tuple[Callable[[], object], int] | None:
    """A call of the method's graph on random inputs, and the nodes of the graph."""
    import onnx
    import onnxruntime as ort

    if "tokens" not in sites_of(module) or name == "identity":
        return None
    method = module.Method(tokens=kept)
    try:
        method.plan(shape)
    except PlanError:
        return None
    say(f"{name}, {shape.tokens} to {kept}")
    total, wide = shape.tokens, {"keys": 64, "flat_keys": CHANNELS}
    inputs = [Tensor("features", "f32", (1, total, CHANNELS))]
    inputs += [
        Tensor(s, "f32", (1, total, wide[s]) if s in wide else (1, total)) for s in method.signals
    ]
    outputs = (
        Tensor("visual_tokens", "f32", (1, kept, CHANNELS)),
        Tensor("kept_positions", "i32", (1, kept)),
    )
    function = Function("reduce", tuple(inputs), outputs, 0)
    block = Block("reduce-0", "reduce", (0, 1), 0, (function,))
    reduce = ReduceBlock(torch.nn.Identity(), method, shape).eval()
    place = folder / f"{name}-{total}-{kept}"
    place.mkdir()
    target = TARGETS.load("onnx")
    program = trace(reduce, function, block)
    nodes = sum(n.op == "call_function" for n in program.graph.nodes)
    if nodes > SLOW_NODES:
        return None
    (written,) = target.write(
        target.lower({"reduce": program}, block), block, weights(reduce), place, None
    )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    ran = ort.InferenceSession(place / written.file, settings, ["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {
        t.name: generator.random(t.shape, np.float32) for t in inputs if t in written.inputs
    }
    count = len(onnx.load(place / written.file, load_external_data=False).graph.node)
    return lambda: ran.run(None, feed), count


def read_sweep(path: Path) -> dict[tuple[str, int], str]:
    """Accuracy with its interval by method and tokens, in per cent."""
    found = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == "all" and row["accuracy"]:
                low, value, high = (100 * float(row[k]) for k in ("low", "accuracy", "high"))
                found[row["method"], int(row["tokens"])] = f"{value:.1f} ({low:.1f} to {high:.1f})"
    return found


def page(
    modules: dict[str, ModuleType],
    costs: dict[tuple[str, int, int], float],
    nodes: dict[tuple[str, int, int], int],
    accuracy: dict[tuple[str, int], str],
    where: dict[str, Any],
) -> str:
    """The whole page."""
    lines = ["# Methods", "", PREFACE.format(**where), "", "## Accuracy", ""]
    heads = [f"{share} ({tokens} tokens)" for tokens, share in SHARES.items()]
    lines += [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    measured = sorted({name for name, _ in accuracy} - {"identity"})
    for name in ("random", "average_pool", *measured):
        if name in measured:
            cells = [accuracy.get((name, tokens), "-") for tokens in SHARES]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["", "## Cost of `reduce`", ""]
    heads = [f"{total} to {kept}" for total in SHAPES for kept in KEPT]
    lines += [f"| ms (nodes) | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name in modules:
        cells = [
            f"{costs[name, t, k]:.2f} ({nodes[name, t, k]})" if (name, t, k) in costs else "-"
            for t in SHAPES
            for k in KEPT
        ]
        if any(cell != "-" for cell in cells):
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["", "## What each is", ""]
    for name, module in modules.items():
        lines += [
            f"### {name}",
            "",
            f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
            "",
            f"- Sites: {', '.join(sites_of(module))}",
            f"- Formula: {module.FORMULA}",
            f"- Static form: {module.STATIC}",
            f"- Source: {module.SOURCE}",
            f"- Differs: {module.DIFFERS}",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


PREFACE = """\
Written by `tests/benchmarks/methods.py`; do not edit. {processor}, {threads} threads, {dtype},
{date}. Accuracy in per cent, with a 95 % interval, on the embedded model's unseen test scenes; cost
in ms (nodes of the graph) of `reduce` alone, with 576 channels. `-`: not possible, or a graph of
thousands of nodes."""


if __name__ == "__main__":
    main()
