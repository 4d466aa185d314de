"""What a memory budget costs: passes and answers of one bundle in less and less memory.

    python tests/benchmarks/memory.py BUNDLE --budgets 1/2 1/3 1/4 least

A budget is a size (300MB), a share of the float32 weights, `least` (4 MB more than the smallest
that this bundle can keep to) or `all` (no budget at all). Each has a process of its own, and rounds
go through all of them, so that none has a good minute alone. A pass is measured between its second
and its last repetition. In brackets are what `loader` predicts, from costs that each round measures
anew (those in the cache are of another minute, and a machine may be half as fast in the next), what
was measured / predicted, and what was measured / max(sum of loads, sum of runs) + first load.
`--cold` drops the files of the bundle and of the cache from the page cache before every pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm import api
from edgevlm.bundle.cache import cache_folder
from edgevlm.bundle.files import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.registry import engine_for
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.residency.measure import measure_timings
from edgevlm.runtimes.residency.memory import footprint_bytes, forget_peak, peak_rss_bytes
from edgevlm.runtimes.residency.schedule import Unit
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.runtimes.residency.timings import schedules
from edgevlm.units import parse_bytes

PASSES = {"encode": 4, "prefill": 5, "decode": 12}
PHOTO = Path(__file__).parents[2] / "edgevlm" / "photos" / "flower.jpg"
SLACK = 4 * 10**6  # processes differ by as much
QUESTION, TOKENS = "What is in this picture?", 16


def main() -> None:
    """Print a table, or measure one budget as a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--budgets", nargs="+", default=["all", "1/2", "1/3", "1/4", "least"])
    parser.add_argument("--weights", type=parse_bytes, help="float32 weights, for shares")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--json", type=Path, help="write every round there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measure(asked.bundle, asked.threads, asked.one, asked.cold)))
        return
    weights = asked.weights or sum(f.stat().st_size for f in asked.bundle.rglob("*.weights"))
    found: dict[str, list[dict[str, Any]]] = {}
    sizes = {text: budget(asked.bundle, asked.threads, text, weights) for text in asked.budgets}
    plan = Bundle.open(asked.bundle).plan
    for round_ in range(asked.rounds):
        print(f"round {round_ + 1}: measure", file=sys.stderr)
        timings = measure_timings(asked.bundle, engine_for(plan.recipe.target), asked.threads)
        for text, size in sizes.items():
            print(f"round {round_ + 1}: {text}", file=sys.stderr)
            made = apart(asked, size)
            if "fixed" in made:
                planned = schedules(timings, plan.passes, made["fixed"], size)
                made["predicted"] = {name: s.pass_ms for name, s in planned.items()}
                made["bound"] = {name: bound(s.units) for name, s in planned.items()}
            found.setdefault(text, []).append(made)
    show(found)
    if asked.json:
        asked.json.write_text(json.dumps(found))


def budget(bundle: Path, threads: int, text: str, weights: int) -> int:
    """Bytes of a budget; 0 is none."""
    if text == "all":
        return 0
    if text == "least":
        loop = load_loop(bundle, None, threads, 10**12)
        assert isinstance(loop.blocks, StreamedBlocks)
        return int(loop.blocks.minimum_budget_bytes) + SLACK
    return int(weights * Fraction(text)) if "/" in text else parse_bytes(text)


def bound(units: Sequence[Unit]) -> float:
    """What a pass takes at least where nothing is kept, in ms."""
    return max(sum(u.load_ms for u in units), sum(u.run_ms for u in units)) + units[0].load_ms


def apart(asked: argparse.Namespace, size: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, str(asked.bundle), "--threads", str(asked.threads)]
    command += ["--one", str(size), *(["--cold"] if asked.cold else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def measure(bundle: Path, threads: int, size: int, cold: bool) -> dict[str, Any]:
    """Two answers, then each pass a few times over, in one process."""
    forget_peak()
    started = time.perf_counter()
    try:
        loop = load_loop(bundle, None, threads, size or None)
    except EdgeVLMError as refused:
        return {"size": size, "refused": str(refused)}
    opened = (time.perf_counter() - started) * 1e3
    picture, model = images.load(PHOTO), api.Model(loop)
    if cold:
        drop(bundle)
    answer = model.generate(picture, QUESTION, max_new_tokens=TOKENS)
    made: dict[str, Any] = {
        "size": size,
        "open_ms": opened,
        "ttft_ms": answer.ttft_ms,
        "tokens_per_s": answer.decode_tokens_per_s,
        "ids": answer.token_ids,
        "logits": loop.logits().astype(float).tolist(),
    }
    for name, times in PASSES.items():
        loop.blocks.expect(name, None)
        at = []
        for _ in range(times + 1):
            if cold:
                drop(bundle)
            at.append(time.perf_counter())
            for key in loop.plan.passes[name]:
                loop.blocks.run(*key)
            at[-1] = time.perf_counter() - at[-1]
        made[name] = at[1:]
    made |= {"peak": peak_rss_bytes(), "private": footprint_bytes(), "loads": loop.blocks.loads}
    if isinstance(loop.blocks, StreamedBlocks):
        made["fixed"] = loop.blocks.fixed_bytes
        loop.blocks.close()
    return made


def drop(bundle: Path) -> None:
    """Have the system forget the bundle's files."""
    for path in (*bundle.rglob("*"), *cache_folder().rglob("*.matrices")):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """A Markdown table; the ratios in brackets are of the same round, the median over rounds."""
    print("| budget | peak | private | open | first token | a view | a chunk | a token | ids |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    reference = found.get("all", next(iter(found.values())))[0]
    for name, rounds in found.items():
        if "refused" in rounds[0]:
            print(f"| {name} | {rounds[0]['refused']} |")
            continue
        size = f" ({rounds[0]['size'] / 1e6:.0f} MB)" if rounds[0]["size"] else ""
        cells = [f"{max(r['peak'] for r in rounds) / 1e6:.0f} MB"]
        cells.append(f"{max(r['private'] for r in rounds) / 1e6:.0f} MB")
        cells += [shown([r[k] for r in rounds]) for k in ("open_ms", "ttft_ms")]
        for key in PASSES:
            times = [1e3 * t for r in rounds for t in r[key]]
            cell = shown(times)
            if "predicted" in rounds[0]:
                said = [r["predicted"][key] for r in rounds]
                took = [1e3 * np.median(r[key]) for r in rounds]
                ratios = (
                    np.median([t / r[of][key] for t, r in zip(took, rounds, strict=True)])
                    for of in ("predicted", "bound")
                )
                cell += f" ({np.median(said):.0f}, " + ", ".join(f"{r:.2f}" for r in ratios) + ")"
            cells.append(cell)
        same = all(r["ids"] == reference["ids"] for r in rounds)
        wanted = np.array(reference["logits"])
        error = max(np.abs(np.array(r["logits"]) - wanted).max() for r in rounds)
        cells.append(f"{'equal' if same else 'differ'}, {error / np.abs(wanted).max():.0e}")
        print(f"| {name}{size} | " + " | ".join(cells) + " |")


def shown(times: list[float]) -> str:
    """Median and p90."""
    return f"{np.median(times):.0f} / {np.percentile(times, 90):.0f}"


if __name__ == "__main__":
    main()
