"""What checking several tokens in one call costs, beside one token.

    python tests/benchmarks/check.py --model SMOLVLM_256M --work FOLDER [--quantize none w8a8]

`decode` is a token after 200 rows, `check` as many as the bundle takes in one call, each with the
scores of all its rows, in rounds. A draft pays where it guesses more tokens right, in a call, than
the second costs more than the first.
"""

from __future__ import annotations

import numpy as np
from _measure import bundle, finish, machine, open_loop, parser, report, rounds, row

from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops.text import TextLoop

ROWS = 200


def main() -> None:
    """Export what is missing, measure, print."""
    made = parser(__doc__)
    made.add_argument("--quantize", nargs="+", default=["none", "w8a8"])
    made.add_argument("--speculate", type=int, default=8)
    options = made.parse_args()
    where, rows = machine(options.threads), []
    for scheme in options.quantize:
        recipe = Recipe(
            model=options.model, tokens=32, methods=("average_pool",), quantize=scheme,
            speculate=options.speculate,
        )  # fmt: skip
        loop = open_loop(bundle(recipe, options.work), options.threads, ("vision",))
        times = rounds(
            {
                "decode": lambda loop=loop: step(loop, "decode", "logits", 1),
                "check": lambda loop=loop: step(loop, "check", "check", options.speculate),
            },
            options.repeats,
        )
        one = times["decode"]
        rows += [
            row(f"a token, {scheme}", one),
            row(f"a check of {options.speculate}, {scheme}", times["check"], one),
        ]
    report("checks", rows, where, "a token / a check")
    finish(options.json, {"where": where, "rows": rows})


def step(loop: TextLoop, name: str, head: str, count: int) -> None:
    """Rows after `ROWS` others, and their scores."""
    loop.length = ROWS
    loop.run(name, np.asarray(loop.table[:count]), np.arange(ROWS, ROWS + count, dtype=np.int32))
    for block in loop.plan.stage("head"):
        loop.blocks.run(block.name, head)


if __name__ == "__main__":
    main()
