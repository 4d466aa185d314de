"""What weights of few bits save on ONNX Runtime: bytes, prefill, and a token after it.

    python tests/benchmarks/schemes.py --model SMOLVLM_256M --work FOLDER

Decoder and head (with the embedding table) of the model, in float32 and in each scheme, over the
same random rows: a prompt of 256, and one token after it. Cases run in rounds; the ratio is float32
/ this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from _measure import Row, bundle, finish, machine, open_loop, parser, report, rounds, row

from edgevlm.bundle import Bundle
from edgevlm.recipe import Recipe
from edgevlm.registry import TARGETS
from edgevlm.runtimes.sequence import Piece
from edgevlm.runtimes.text import TextLoop

ROWS = 256


def main() -> None:
    """Export what is missing, measure, print."""
    options = parser(__doc__).parse_args()
    where = machine(options.threads)
    base = Recipe(model=options.model, tokens=32, methods=("average_pool",), context=512)
    sizes, cases = {}, dict[str, Callable[[], object]]()
    for scheme in TARGETS.load("onnx").SCHEMES:
        quantize = "none" if scheme == "none" else f"none,decoder={scheme},head={scheme}"
        found = bundle(replace(base, quantize=quantize, chunk=ROWS), options.work)
        loop = open_loop(found, options.threads, ("vision", "reduce"))
        sizes[scheme] = _bytes(found)
        cases[f"{scheme}, prefill"], cases[f"{scheme}, token"] = _prefill(loop), _token(loop)
    times = rounds(cases, options.repeats)
    rows = []
    for name, ms in times.items():
        scheme, _, what = name.partition(", ")
        shown = f"{ROWS} rows" if what == "prefill" else "a token"
        shown += f", {scheme}, {sizes[scheme] / 1e6:.0f} MB"
        rows.append(row(shown, ms, times[f"none, {what}"]))
    ordered: list[Row] = [*rows[::2], *rows[1::2]]
    report("Schemes", ordered, where | {"dtype": "as named"}, "float32 / this")
    finish(options.json, {"where": where, "bytes": sizes, "schemes": ordered})


def _bytes(found: Bundle) -> int:
    """Decoder, head and embedding table."""
    return sum(
        file.bytes
        for file in found.plan.files
        if file.path.endswith((".weights", "table.bin")) and "/vision/" not in file.path
    )


def _prefill(loop: TextLoop) -> Callable[[], None]:
    random = np.random.default_rng(0)
    rows = random.standard_normal((ROWS, loop.table.shape[1])).astype(np.float32)
    piece = Piece(rows, np.arange(ROWS, dtype=np.int32))

    def run() -> None:
        loop.reset()
        loop.prefill(piece)

    return run


def _token(loop: TextLoop) -> Callable[[], None]:
    """One token; the cache holds what the prefill of the same round left."""
    row = np.asarray(loop.table[:1])

    def run() -> None:
        loop.prefill(Piece(row, np.asarray([loop.position], np.int32)))
        loop.logits()

    return run


if __name__ == "__main__":
    main()
