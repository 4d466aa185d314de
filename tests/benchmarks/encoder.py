"""How much faster the encoder is when patches merge inside it.

    python tests/benchmarks/encoder.py --model SMOLVLM_256M --work FOLDER

`encode` of one view (1,024 patches, 12 layers), in rounds over all cases in one process: without a
method, with ToMe to half the patches by the middle layer, with ToMe to a quarter by the last third;
each in float32 and in `w8a8`. Goals in float32: 1.4 and 1.6 times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from _measure import bundle, finish, machine, open_loop, parser, report, rounds, row, say

from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops.text import TextLoop

# Patches, the layer by which they are left, and how many times faster than without.
GOALS = {(512, 6): 1.4, (256, 8): 1.6}


def main() -> None:
    """Export what is missing, measure, print."""
    options = parser(__doc__).parse_args()
    where = machine(options.threads)
    methods = {"all patches": tuple[str, ...]()}
    for patches, layer in GOALS:
        method = f"tome@vision:patches={patches},by={layer}"
        methods[method] = (method,)
    recipes = {
        name if scheme == "none" else f"{name}, {scheme}": Recipe(
            model=options.model, methods=chosen, quantize=scheme
        )
        for scheme in ("none", "w8a8")
        for name, chosen in methods.items()
    }
    cases: dict[str, Callable[[], object]] = {}
    for name, recipe in recipes.items():
        found = bundle(recipe, options.work)
        cases[name] = _encode(open_loop(found, options.threads, without=("decoder", "head")))
    say("measure")
    times = rounds(cases, options.repeats)
    base, *others = recipes
    rows = [row(base, times[base]), *(row(name, times[name], times[base]) for name in others)]
    report("Encode of one view", rows, where, "times as fast")
    goals: dict[str, dict[str, Any]] = {}
    for goal, found_row in zip(GOALS.values(), rows[1:], strict=False):
        got = found_row.ratio or 0.0
        goals[found_row.name] = {"goal": goal, "measured": got, "ok": got >= goal}
    for name, result in goals.items():
        print(
            f"{name}: goal {result['goal']}, measured {result['measured']:.3f}, ok {result['ok']}"
        )
    finish(options.json, {"where": where, "encode": rows, "goals": goals})


def _encode(loop: TextLoop) -> Callable[[], None]:
    loop.arrays.pixels[:] = np.random.default_rng(0).standard_normal(loop.arrays.pixels.shape)

    def run() -> None:
        for block in loop.plan.stage("vision"):
            loop.blocks.run(block.name, "encode")

    return run


if __name__ == "__main__":
    main()
