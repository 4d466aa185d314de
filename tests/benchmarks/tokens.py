"""How the prefill of the language model follows the number of visual tokens.

    python tests/benchmarks/tokens.py --model SMOLVLM_256M --work FOLDER

An image of 4x4 tiles and the global view gives 17 x 64 = 1,088 visual tokens. Measured, in rounds
over all cases in one process:

    prefill   K visual and 32 text rows written into an empty cache, in the plan's chunks
    logits    one row of scores after it
    reduce    the choice of K from all tokens: divprune, and the baselines random and average_pool

Goals: half the tokens at least 1.9 times as fast, a quarter 3.5 times; reduce under 5 % of prefill.
The markers between tiles (they stay when tokens go) are not part of these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Row, bundle, finish, machine, open_loop, parser, report, rounds, row, say

from edgevlm.exporters.contract import TargetOptions, find_target
from edgevlm.graphs.blocks import build
from edgevlm.graphs.trace import trace, weights
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops.sequence import text_rows
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime

TILES = (4, 4)
TEXT_TOKENS = 32
# Visual tokens, and how many times faster than all of them the prefill must be.
GOALS = {544: 1.9, 272: 3.5}
BASELINES = ("random", "average_pool")
REDUCE_SHARE = 0.05


def main() -> None:
    """Export what is missing, measure, print."""
    options = parser(__doc__).parse_args()
    where = machine(options.threads)
    loops: dict[int, TextLoop] = {}
    for tokens in (None, *GOALS):
        recipe = Recipe(model=options.model, tiles=TILES, tokens=tokens)
        found = bundle(recipe, options.work)
        loops[found.plan.host.visual_tokens] = open_loop(
            found, options.threads, without=("vision",)
        )
    say("reduce")
    full, *fewer = sorted(loops, reverse=True)
    reduce = {("divprune", k): _reduce_of(loops[k]) for k in fewer}
    reduce |= {
        (method, k): _baseline(options.model, method, k, options.work, options.threads)
        for method in BASELINES
        for k in fewer
    }
    cases: dict[str, Callable[[], object]] = {}
    for tokens, loop in loops.items():
        cases[f"prefill {tokens}"] = _prefill_of(loop, tokens)
        cases[f"logits {tokens}"] = loop.logits
    cases |= {f"reduce {method} {k}": run for (method, k), run in reduce.items()}
    say("measure")
    times = rounds(cases, options.repeats)

    base = times[f"prefill {full}"]
    rows = [
        row(
            f"prefill, {k} visual + {TEXT_TOKENS} text tokens, chunk {loops[k].plan.host.chunk}",
            times[f"prefill {k}"],
            None if k == full else base,
        )
        for k in loops
    ]
    rows += [row(f"logits after {k}", times[f"logits {k}"]) for k in loops]
    report("Prefill by visual tokens", rows, where, "times as fast")
    shares = [
        _share(f"reduce to {k}, {method}", times[f"reduce {method} {k}"], times[f"prefill {k}"])
        for method, k in reduce
    ]
    report("Choice of tokens", shares, where, "share of its prefill")
    goals: dict[str, dict[str, Any]] = {}
    for k, goal in GOALS.items():
        got = _ratio(rows, k)
        goals[f"prefill {k}"] = {"goal": goal, "measured": got, "ok": got >= goal}
    worst = max(s.ratio or 0.0 for s in shares)
    goals["reduce"] = {"goal": REDUCE_SHARE, "measured": worst, "ok": worst <= REDUCE_SHARE}
    for name, goal in goals.items():
        print(f"{name}: goal {goal['goal']}, measured {goal['measured']:.3f}, ok {goal['ok']}")
    finish(options.json, {"where": where, "prefill": rows, "reduce": shares, "goals": goals})


def _prefill_of(loop: TextLoop, tokens: int) -> Callable[[], None]:
    random = np.random.default_rng(0)
    count = tokens + TEXT_TOKENS
    rows = random.standard_normal((count, loop.table.shape[1])).astype(np.float32) * 0.1
    piece = text_rows(loop.plan, rows)

    def run() -> None:
        loop.reset()
        loop.prefill(piece)

    return run


def _reduce_of(loop: TextLoop) -> Callable[[], None]:
    given = loop.arrays.all_views["features"]
    given[:] = np.random.default_rng(1).standard_normal(given.shape)
    return lambda: loop.blocks.run("reduce-0", "reduce")


def _baseline(
    model: str, method: str, tokens: int, work: Path, threads: int
) -> Callable[[], object]:
    """The `reduce` of another method alone: its decoder would be the same."""
    checkpoint = find(model, None)
    recipe = Recipe(model=model, tiles=TILES, tokens=tokens, methods=(method,))
    planned = make_plan(recipe, checkpoint)
    (block,) = planned.plan.stage("reduce")
    parts = checkpoint.family.parts(checkpoint.empty_model(), planned.description)
    module: Any = build(block, parts, planned.method, planned.description.shape)
    target = find_target(recipe.target)
    folder = work / f"reduce-{method}-{tokens}"
    folder.mkdir(exist_ok=True)
    lowered = target.lower(
        {f.name: trace(module, f, block) for f in block.functions}, block, TargetOptions("none")
    )
    (function,) = target.write(lowered, block, weights(module), folder, None)
    ort = import_onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(folder / function.file, settings, ["CPUExecutionProvider"])
    shape = block.functions[0].inputs[0].shape
    features = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    feed = {"features": features} if function.inputs else {}
    return lambda: session.run(None, feed)


def _share(name: str, times: list[float], prefill: list[float]) -> Row:
    shown = row(name, times)
    share = float(np.median(np.asarray(times) / np.asarray(prefill)))
    return Row(shown.name, shown.n, shown.median_ms, shown.p90_ms, share)


def _ratio(rows: list[Row], tokens: int) -> float:
    return next(r.ratio or 0.0 for r in rows if r.name.startswith(f"prefill, {tokens} "))


if __name__ == "__main__":
    main()
