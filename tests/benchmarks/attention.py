"""From how many patches on attention is faster in bytes.

    python tests/benchmarks/attention.py

Attention of an encoder as the exporter writes it: ONNX Runtime's own operator, and products of
bytes, each 12 times one after another, in rounds over both in one process, with random queries,
keys and values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _measure import finish, machine, report, rounds, row
from torch import Tensor, nn

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.functions import Tensor as Spec
from edgevlm.exporters.contract import TargetOptions
from edgevlm.exporters.to_onnx import attention
from edgevlm.exporters.to_onnx.target import lower, write
from edgevlm.graphs import ops
from edgevlm.graphs.trace import trace
from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime

LAYERS = 12
SHAPES = [(196, 16, 64), (256, 16, 64), (400, 16, 64), (576, 16, 64), (729, 16, 72), (1024, 12, 64)]


class _Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ops.attention(query, key, value, self.heads)


def main() -> None:
    """Write each, measure, print."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--repeats", type=int, default=20, help="rounds after two warm-ups")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--json", action="store_true", help="last line: one JSON document")
    options = made.parse_args()
    where = machine(options.threads)
    attention.LEAST_SCORES = 0
    tables = []
    for patches, heads, size in SHAPES:
        with TemporaryDirectory() as work:
            cases = {
                name: _run(patches, heads, size, scheme, options.threads, Path(work))
                for name, scheme in (("float32", "none"), ("bytes", "w8a8"))
            }
            times = rounds(cases, options.repeats)
        base = times["float32"]
        found = [row("float32", base), row("bytes", times["bytes"], base)]
        report(f"{patches} patches, {heads} heads of {size}", found, where, "times as fast")
        tables.append({"patches": patches, "heads": heads, "size": size, "rows": found})
    finish(options.json, {"where": where, "attention": tables})


def _run(
    patches: int, heads: int, size: int, scheme: str, threads: int, work: Path
) -> Callable[[], object]:
    shape = (1, patches, heads * size)
    inputs = tuple(Spec(name, "f32", shape) for name in ("query", "key", "value"))
    function = Function("run", inputs, (Spec("seen", "f32", shape),), 0)
    block = Block(f"attention-{scheme}", "vision", (0, 1), 0, (function,))
    program = trace(_Attention(heads).eval(), function, block)
    (written,) = write(lower({"run": program}, block, TargetOptions(scheme)), block, {}, work, None)
    ort = import_onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    session: Any = ort.InferenceSession(work / written.file, settings, providers=providers)
    generator = torch.Generator().manual_seed(0)
    given = {spec.name: torch.randn(shape, generator=generator).numpy() for spec in inputs}
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_output("seen", ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, "f4")))

    def run() -> None:
        for _ in range(LAYERS):
            session.run_with_iobinding(binding)

    return run


if __name__ == "__main__":
    main()
