"""What weights of few bits save: bytes, prefill, and a token after it.

    python tests/benchmarks/schemes.py --model SMOLVLM_256M --work FOLDER

Decoder and head (with the embedding table) of the model, in float32 and in each scheme, over the
same random rows: a prompt of 256, and one token after it, on ONNX Runtime and on ExecuTorch, and
beside them what transformers.exporters writes for ONNX Runtime (`peer`). Cases run in rounds; the
ratio is float32 of the first target / this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from _measure import (
    Row,
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
from peer import transformers_onnx
from peer._given import Given

from edgevlm.bundle.files import Bundle
from edgevlm.exporters.contract import find_target
from edgevlm.recipe import Recipe

ROWS = 256
SCENES = "8"  # to calibrate with
TARGETS_MEASURED = ("onnx", "executorch")


def main() -> None:
    """Export what is missing, measure, print."""
    made = parser(__doc__)
    made.add_argument("--targets", nargs="+", default=list(TARGETS_MEASURED))
    options = made.parse_args()
    where = machine(options.threads)
    base = Recipe(model=options.model, tokens=32, methods=("average_pool",), context=512)
    sizes, cases = {}, dict[str, Callable[[], object]]()
    for target in options.targets:
        for scheme in find_target(target).schemes:
            quantize = "none" if scheme == "none" else f"none,decoder={scheme},head={scheme}"
            recipe = replace(base, target=target, quantize=quantize, chunk=ROWS)
            if scheme in find_target(target).calibrated:
                recipe = replace(recipe, calibrate=SCENES)
            found = bundle(recipe, options.work)
            loop = open_loop(found, options.threads, ("vision", "reduce"))
            sizes[target, scheme] = _bytes(found)
            cases[f"{target} {scheme}, prefill"] = prefill(loop, ROWS)
            cases[f"{target} {scheme}, token"] = token(loop)
    given = Given(options.model, options.work, options.threads)
    transformers_onnx.prepare(given, "fp32")
    peer = transformers_onnx.open(given, "fp32")
    columns = given.config["text_config"]["hidden_size"]
    random = np.random.default_rng(0).standard_normal((ROWS, columns)).astype(np.float32)
    cases["transformers.exporters none, prefill"] = lambda: peer.prefill_rows(random)
    cases["transformers.exporters none, token"] = lambda: peer.step(500)
    sizes["transformers.exporters", "none"] = peer.text_bytes
    times = rounds(cases, options.repeats)
    rows = []
    for name, ms in times.items():
        case, _, what = name.partition(", ")
        target, scheme = case.split()
        shown = f"{ROWS} rows" if what == "prefill" else "a token"
        shown += f", {case}, {sizes[target, scheme] / 1e6:.0f} MB"
        rows.append(row(shown, ms, times[f"{options.targets[0]} none, {what}"]))
    ordered: list[Row] = [*rows[::2], *rows[1::2]]
    report("Schemes", ordered, where | {"dtype": "as named"}, "first / this")
    named = {" ".join(key): size for key, size in sizes.items()}
    finish(options.json, {"where": where, "bytes": named, "schemes": ordered})


def _bytes(found: Bundle) -> int:
    """Decoder, head and embedding table."""
    return sum(
        file.bytes
        for file in found.plan.files
        if file.path.endswith((".weights", "table.bin", ".pte"))
        and not file.path.startswith(("blocks/vision", "blocks/reduce"))
    )


if __name__ == "__main__":
    main()
