"""Write docs/methods.md: what each method is, what it costs, and what it answers.

    python tests/benchmarks/methods.py --model SMOLVLM --work FOLDER --sweep CSV --out PAGE

Cost is that of `reduce` alone at site `tokens`: one square grid of 576 tokens (24 x 24) and five of
them as 2 x 2 tiles and their thumbnail (2,880), C = 576 (SmolVLM-256M's), random features and
signals, in rounds over all methods and the prefill of 64 visual and 32 text rows by that model. A
method is slow if 576 to 64 tokens takes more than a twentieth of the prefill. Accuracy is read from
`edgevlm evaluate embedded --sweep tokens=24,49,98 --methods all,all@decoder -o SWEEP`: 1/8, 1/4 and
1/2 of the embedded model's 196 tokens. Where a method is below `random`, `REASONS` says why.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import bundle, machine, open_loop, parser, rounds, say

from edgevlm.bundle.functions import Block, Function, Tensor
from edgevlm.compress.shared.contract import COMPARISONS
from edgevlm.compress.shared.described import COMMON, method_options
from edgevlm.errors import PlanError
from edgevlm.exporters.contract import TargetOptions, find_target
from edgevlm.graphs.blocks import ReduceBlock
from edgevlm.graphs.trace import trace, weights
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS
from edgevlm.runtimes.loops.sequence import text_rows
from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime

CHANNELS = 576
SHAPES = {
    576: VisualShape(((24, 24),), CHANNELS),
    2880: VisualShape(((24, 24),) * 5, CHANNELS, (2, 2), "first"),
}
KEPT = (64, 128, 192)
TEXT_TOKENS, SLOW_SHARE = 32, 0.05  # of a prompt; of its prefill
# Options that change the cost.
VARIANTS = {"divprune:groups=8": ("divprune", {"groups": 8})}
SHARES = {24: "1/8", 49: "1/4", 98: "1/2"}
# Why a method is below `random`, as its paper or a measurement here has it; by NAME[@decoder].
REASONS: dict[str, str] = {}
UNKNOWN = "not known"
# A greedy loop of more steps makes a graph that nobody wants to wait for.
SLOW_NODES = 4000


@dataclass(frozen=True)
class Accuracy:
    """Right answers in per cent, with their interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As the table has it."""
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def main() -> None:
    """Measure, read the sweep, write the page."""
    made = parser(__doc__)
    made.add_argument("--sweep", type=Path, required=True, help="CSV of a sweep")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--note", default="", help="a sentence above the accuracies")
    options = made.parse_args()
    where = machine(options.threads)
    accuracy = read_sweep(options.sweep)
    prompt = prefill(options.model, options.work, options.threads)
    costs, nodes = measure(prompt, options.repeats, options.threads)
    options.out.write_text(page(costs, nodes, accuracy, where, options.note))
    say(f"{options.out} written")


def prefill(model: str, work: Path, threads: int) -> Callable[[], object]:
    """The language model over the rows of the smallest budget and of a question."""
    loop = open_loop(bundle(Recipe(model=model), work), threads, without=("vision", "reduce"))
    count = KEPT[0] + TEXT_TOKENS
    rows = np.random.default_rng(0).standard_normal((count, loop.table.shape[1]))
    piece = text_rows(loop.plan, rows.astype(np.float32) * 0.1)

    def run() -> None:
        loop.reset()
        loop.prefill(piece)

    return run


def measure(
    prompt: Callable[[], object], repeats: int, threads: int
) -> tuple[dict[tuple[str, int, int], float], dict[tuple[str, int, int], int]]:
    """Median ms and nodes of `reduce` by method, N and K; what cannot be made is left out.

    The prefill is "prefill" with N and K of 0.
    """
    cases: dict[str, Callable[[], object]] = {"prefill 0 0": prompt}
    nodes: dict[tuple[str, int, int], int] = {}
    names = [name for name in METHODS.names("tokens") if name != "identity"]
    known = {name: (name, dict[str, Any]()) for name in names} | VARIANTS
    with tempfile.TemporaryDirectory() as folder:
        for title, (name, options) in known.items():
            for total, shape in SHAPES.items():
                for kept in KEPT:
                    method = METHODS.load(name, "tokens").Method(tokens=kept, **options)
                    place = Path(folder) / f"{title.replace(':', '-')}-{total}-{kept}"
                    say(f"{title}, {total} to {kept}")
                    made = session(method, shape, kept, threads, place)
                    if made is not None:
                        cases[f"{title} {total} {kept}"], nodes[title, total, kept] = made
        times = rounds(cases, repeats)
    found = {}
    for key, spent in times.items():
        name, total, kept = key.split()
        found[name, int(total), int(kept)] = float(np.median(spent))
    return found, nodes


def session(
    method: Any, shape: VisualShape, kept: int, threads: int, place: Path
) -> tuple[Callable[[], object], int] | None:
    """A call of the method's graph on random inputs, and the nodes of the graph."""
    import onnx

    try:
        method.plan(shape)
    except PlanError:
        return None
    total, wide = shape.tokens, {"keys": 64, "flat_keys": CHANNELS, "hidden": CHANNELS}
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
    place.mkdir()
    target = find_target("onnx")
    program = trace(reduce, function, block)
    nodes = sum(n.op == "call_function" for n in program.graph.nodes)
    if nodes > SLOW_NODES:
        return None
    (written,) = target.write(
        target.lower({"reduce": program}, block, TargetOptions("none")),
        block,
        weights(reduce),
        place,
        None,
    )
    ort = import_onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    ran = ort.InferenceSession(place / written.file, settings, ["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {
        t.name: generator.random(t.shape, np.float32) for t in inputs if t in written.inputs
    }
    count = len(onnx.load(place / written.file, load_external_data=False).graph.node)
    return lambda: ran.run(None, feed), count


def read_sweep(path: Path) -> dict[tuple[str, int], Accuracy]:
    """Accuracy by method and tokens."""
    found = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == "all" and row["accuracy"]:
                value, low, high = (100 * float(row[k]) for k in ("accuracy", "low", "high"))
                found[row["method"], int(row["tokens"])] = Accuracy(value, low, high)
    return found


def reason(name: str, accuracy: dict[tuple[str, int], Accuracy], budgets: Iterable[int]) -> str:
    """Why a method is below `random` at one of these numbers of tokens; nothing where it is not."""
    pairs = [
        (accuracy[name, tokens], accuracy["random", tokens])
        for tokens in budgets
        if {(name, tokens), ("random", tokens)} <= set(accuracy)
    ]
    below = [(own, drawn) for own, drawn in pairs if own.value < drawn.value]
    if not below:
        return ""
    if all(own.high >= drawn.low for own, drawn in below):
        return "intervals overlap"
    return REASONS.get(name, UNKNOWN)


def accuracy_tables(accuracy: dict[tuple[str, int], Accuracy]) -> list[str]:
    """Lines of the two tables: of methods before the language model, and inside it."""
    heads = [f"{share} ({tokens} tokens)" for tokens, share in SHARES.items()]
    lines = [f"| method | compared by | {' | '.join(heads)} | below `random` because |"]
    lines.append("|---|---|" + "---:|" * len(heads) + "---|")
    first = ("random", "average_pool")
    others = sorted({name for name, _ in accuracy if "@" not in name} - {"identity", *first})
    for name in (*first, *others):
        cells = [str(accuracy.get((name, tokens), "-")) for tokens in SHARES]
        compared = METHODS.load(name, "tokens").COMPARED
        lines.append(
            f"| `{name}` | {compared} | {' | '.join(cells)} | {reason(name, accuracy, SHARES)} |"
        )
    inside = sorted(key for key in accuracy if "@" in key[0])
    if not inside:
        return lines
    lines += ["", INSIDE, ""]
    lines += ["| method | compared by | tokens in each layer | accuracy | below `random` because |"]
    lines.append("|---|---|---|---:|---|")
    for name, tokens in inside:
        module = METHODS.load(name.partition("@")[0], "decoder")
        lines.append(
            f"| `{name}` | {module.COMPARED} | {layers(module, tokens)} |"
            f" {accuracy[name, tokens]} | {reason(name, accuracy, [tokens])} |"
        )
    return lines


def layers(module: Any, tokens: int) -> str:
    """Visual tokens in each layer of the embedded model, when a method leaves `tokens`."""
    planned: Any = make_plan(Recipe(), find("embedded"))
    most, depth = planned.plan.host.visual_tokens, len(planned.description.decoder.caches)
    try:
        counts = module.Method(tokens=tokens).plan(most, depth)
    except (TypeError, ValueError, PlanError):  # it has its own stages
        counts = module.Method().plan(most, depth)
    return " ".join(map(str, counts))


def page(
    costs: dict[tuple[str, int, int], float],
    nodes: dict[tuple[str, int, int], int],
    accuracy: dict[tuple[str, int], Accuracy],
    where: dict[str, Any],
    note: str,
) -> str:
    """The whole page."""
    lines = ["# Methods", "", PREFACE.format(**where)]
    lines += [f"- **{name}**: {meaning}" for name, meaning in COMPARISONS.items()]
    lines += ["", "## Accuracy", "", *([note, ""] if note else []), *accuracy_tables(accuracy)]
    lines += ["", DEFAULT]
    lines += ["", "## Cost of `reduce`", ""]
    whole, first = costs["prefill", 0, 0], (min(SHAPES), KEPT[0])
    lines += [
        f"Prefill of {first[1]} visual and {TEXT_TOKENS} text rows by SmolVLM-256M: {whole:.0f} ms."
        f" A method is *slow* if {first[0]} to {first[1]} tokens takes more than"
        f" {SLOW_SHARE:.0%} of that.",
        "",
    ]
    heads = [f"{total} to {kept}" for total in SHAPES for kept in KEPT]
    lines += [f"| ms (nodes) | {' | '.join(heads)} | |", "|---|" + "---:|" * len(heads) + "---|"]
    for name in sorted({name for name, total, _ in costs if total}):
        cells = [
            f"{costs[name, t, k]:.2f} ({nodes[name, t, k]})" if (name, t, k) in costs else "-"
            for t in SHAPES
            for k in KEPT
        ]
        slow = costs.get((name, *first), 0.0) > SLOW_SHARE * whole
        lines.append(f"| `{name}` | {' | '.join(cells)} | {'slow' if slow else ''} |")
    return "\n".join([*lines, "", *descriptions()]) + "\n"


def descriptions() -> list[str]:
    """Lines of the last sections: options, and each method at each of its sites."""
    lines = [CALIBRATION, "", "## What each is", "", COMMON_OPTIONS, ""]
    lines += [f"- {option}" for option in COMMON]
    for name in METHODS.names():
        sites = METHODS.sites_of(name)
        for site in sites:
            module = METHODS.load(name, site)
            lines += [
                "",
                f"### {name}" if len(sites) == 1 else f"### {name}@{site}",
                "",
                f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
                "",
                f"- Site: {site}",
                f"- Formula: {module.FORMULA}",
                *(f"- Option {option}" for option in method_options(module.Method, site, own=True)),
                f"- Static form: {module.STATIC}",
                f"- Source: {module.SOURCE}",
                f"- Compared by: {module.COMPARED}",
                f"- Differs: {module.DIFFERS}",
            ]
    return lines


PREFACE = """\
Written by `tests/benchmarks/methods.py`; do not edit. {processor}, {threads} threads, {dtype},
{date}. Accuracy in per cent, with a 95 % interval, on the embedded model's unseen test scenes; cost
in ms (nodes of the graph) of `reduce` alone, with 576 channels. `-`: not possible, or a graph of
thousands of nodes.

A method here is a way to have fewer visual tokens, most often a paper's, as a static graph. At site
`tokens` it works on what the projector gives, where many originals work before it. *Compared by*
says what was compared with the original, and nothing beyond it is claimed:
"""

INSIDE = """\
Methods inside the encoder (site `vision`) keep the number of visual tokens and make the encoder
quicker; their times and accuracies are in
[benchmarks.md](benchmarks.md#fewer-patches-inside-the-encoder).
What a quarter of a clip's tokens answers, by methods over its frames, is in
[video.md](video.md#fewer-tokens-of-a-clip).

Inside the language model, where the first layers have all 196 tokens; `random` has as many in each
layer as are left here in the last. Methods without a choice of tokens have their own stages."""

COMMON_OPTIONS = """\
`--method NAME@SITE:option=value,option=value` sets options; `edgevlm methods NAME` shows them too.
Options of every method of site `tokens`, whose number of tokens is `--tokens`:
"""

CALIBRATION = """\
## Options found on pictures

Some options belong to a checkpoint. `edgevlm calibrate NAME --model MODEL --images N|PATH` runs
the model on N scenes of the embedded dataset, on the pictures of a folder (not of folders inside
it), or on a .jsonl file of questions, and prints the `--method` to export with:

- `edgevlm calibrate dymu --patches P` prints `dymu:merges=…`: the mean merges of each layer, so
  that P patches of a view are left in the mean.
- `edgevlm calibrate mustdrop:threshold=0.8` prints `mustdrop@vision:patches=…`: the patches left
  in the mean if a window of 3x3 (`window=3`) merges where its patches are that similar (cosine).
- `edgevlm calibrate vflowopt:tokens=K` prints `vflowopt:t=…,alpha=…`, and `cell=…` for pictures
  with tiles: those under which the model's last state changes least with K tokens. `t` is also
  that of `vflowopt@decoder`."""

DEFAULT = """\
`--tokens K` alone means `divprune`: at few tokens it is within the interval of the best, it needs
no signals, so it works behind every encoder, and it is not slow. Where half of the tokens may stay,
`average_pool` is as good and cheaper; for thousands of tokens take `divprune:groups=8`."""


if __name__ == "__main__":
    main()
