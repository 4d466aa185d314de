"""What two choices of ours cost or save: rows per prefill call, and threads that stop between runs.

    python tests/benchmarks/choices.py --model SMOLVLM_256M --work FOLDER

    chunk      1,120 rows into an empty cache, in calls of 64 to 1,120 rows
    spinning   96 rows, and one token after them, with the threads of a session stopping after each
               run (as the engine sets it) and with ONNX Runtime's default, which lets them spin

Only the decoder and the head are loaded. Cases run in rounds; the ratio is against the first line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _measure import (
    PartialEngine,
    bundle,
    finish,
    machine,
    open_loop,
    parser,
    prefill,
    report,
    rounds,
    row,
    token,
)

from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.on_onnxruntime.engine import Engine

ROWS = 1120
CHUNKS = (128, 64, 192, 256, 560, 1120)
FEW_ROWS = 96
WITHOUT = ("vision", "reduce")


class SpinningEngine(Engine):
    """The engine with ONNX Runtime's own setting."""

    def options(self) -> Any:
        """Settings of every session."""
        options = super().options()
        options.add_session_config_entry("session.force_spinning_stop", "0")
        return options


def main() -> None:
    """Export what is missing, measure, print."""
    options = parser(__doc__).parse_args()
    where = machine(options.threads)
    loops = {}
    for chunk in CHUNKS:
        recipe = Recipe(model=options.model, context=ROWS, chunk=chunk)
        found = bundle(recipe, options.work)
        loops[chunk] = open_loop(found, options.threads, WITHOUT)
    times = rounds({str(c): prefill(loop, ROWS) for c, loop in loops.items()}, options.repeats)
    first = times[str(CHUNKS[0])]
    chunks = [row(f"{ROWS} rows, chunk {c}", times[str(c)], first) for c in CHUNKS]
    report("Chunk", chunks, where, "128 / this")

    found = bundle(Recipe(model=options.model, context=ROWS, chunk=128), options.work)
    engines = {"stopping": Engine, "spinning": SpinningEngine}
    cases: dict[str, Callable[[], object]] = {}
    for name, engine in engines.items():
        loop = TextLoop(found, PartialEngine(engine(found, options.threads), WITHOUT))
        cases[f"prefill of {FEW_ROWS} rows, {name}"] = prefill(loop, FEW_ROWS)
        cases[f"a token after them, {name}"] = token(loop)
    times = rounds(cases, options.repeats)
    spinning = [
        row(name, ms, times[name.replace("stopping", "spinning")] if "stopping" in name else None)
        for name, ms in times.items()
    ]
    report("Threads between runs", spinning, where, "spinning / stopping")
    finish(options.json, {"where": where, "chunks": chunks, "spinning": spinning})


if __name__ == "__main__":
    main()
