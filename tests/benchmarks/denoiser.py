"""Denoising in less memory than the blocks take: a stack of diffusion transformer blocks.

    python tests/benchmarks/denoiser.py --work FOLDER [--threads 1] [--tokens 256 1024]

The blocks are those of DiT (arXiv 2212.09748, section 3.2, adaLN-Zero) at the width of PixArt-alpha
(1,152; 16 heads; 24 million numbers a block), with random weights. Every denoising step runs all of
them. They go through the exporter, the engine, the planner and the loading thread of a bundle; the
stack stands where a bundle's image encoder does, since the planner knows blocks alone. Rooms are
shares of the weights; all of them run in rounds, in turn, in one process.

    bound   max(sum of loads, sum of runs) + first load, of what was measured alone
    all     a step with every block in memory
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _measure import machine, say
from memory import bound
from torch import Tensor, nn

from edgevlm.bundle.cache import sha256
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.functions import Tensor as Spec
from edgevlm.bundle.plan import FileEntry
from edgevlm.exporters.contract import TargetOptions
from edgevlm.exporters.to_onnx import target as to_onnx
from edgevlm.graphs.ops import attention
from edgevlm.graphs.trace import trace, weights
from edgevlm.runtimes.on_onnxruntime.engine import Engine
from edgevlm.runtimes.residency.measure import measure_functions
from edgevlm.runtimes.residency.memory import (
    forget_peak,
    peak_rss_bytes,
    resident_bytes,
    return_freed,
)
from edgevlm.runtimes.residency.resident import ResidentBlocks
from edgevlm.runtimes.residency.streamed import StreamedBlocks

WIDTH, HEADS, STEPS = 1152, 16, 3


class DiTBlock(nn.Module):
    """hidden [1, N, C], condition [1, C] -> hidden [1, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        change = self.modulation(nn.functional.silu(condition))[:, None]
        shift, scale, gate, shift2, scale2, gate2 = change.chunk(6, dim=-1)
        plain = nn.functional.layer_norm(hidden, (WIDTH,)) * (1 + scale) + shift
        query, key, value = self.qkv(plain).chunk(3, dim=-1)
        hidden = hidden + gate * self.out(attention(query, key, value, HEADS, None))
        plain = nn.functional.layer_norm(hidden, (WIDTH,)) * (1 + scale2) + shift2
        mlp = self.down(nn.functional.gelu(self.up(plain), approximate="tanh"))
        return hidden + gate2 * mlp


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rooms", nargs="+", default=["1/2", "1/3", "1/4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    where = machine(asked.threads)
    print(f"{where['processor']}, {asked.threads} of {where['cores']} threads, float32")
    for tokens in asked.tokens:
        measure(stack(asked.work / f"{asked.blocks}x{tokens}", asked.blocks, tokens), asked)


def stack(folder: Path, count: int, tokens: int) -> Bundle:
    """As much of a bundle as an engine and the planner ask for."""
    say(f"export {count} blocks for {tokens} tokens")
    folder.mkdir(parents=True, exist_ok=True)
    hidden = Spec("hidden", "f32", (1, tokens, WIDTH))
    given = (hidden, Spec("condition", "f32", (1, WIDTH)))
    function = Function("encode", given, (replace(hidden, name="hidden_out"),), 0)
    torch.manual_seed(0)
    blocks, lowered = [], None
    for index in range(count):
        module = DiTBlock().eval().requires_grad_(False)
        size = 4 * sum(p.numel() for p in module.parameters())
        block = Block(f"vision-{index}", "vision", (index, index + 1), size, (function,))
        if lowered is None:
            lowered = to_onnx.lower(
                {"encode": trace(module, function, block)}, block, TargetOptions("none")
            )
        made = to_onnx.write(lowered, block, weights(module), folder, None)
        blocks.append(replace(block, functions=tuple(replace(f, file=f.file) for f in made)))
    files = [FileEntry(f.name, f.stat().st_size, sha256(f)) for f in sorted(folder.iterdir())]
    plan: Any = SimpleNamespace(
        blocks=tuple(blocks),
        files=tuple(files),
        host=SimpleNamespace(check=0),
        recipe=SimpleNamespace(scheme=lambda stage: "none"),
        stage=lambda name: tuple(blocks) if name == "vision" else (),
        block=lambda name: next(b for b in blocks if b.name == name),
    )
    return Bundle(folder, plan)


def bind(bundle: Bundle, blocks: Any) -> np.ndarray[Any, Any]:
    """Two arrays that the blocks write in turn; the first one begins a step."""
    specs = bundle.plan.blocks[0].functions[0].inputs
    pair = [np.zeros(specs[0].shape, np.float32) for _ in range(2)]
    condition = np.zeros(specs[1].shape, np.float32)
    for index, block in enumerate(bundle.plan.blocks):
        arrays = {"hidden": pair[index % 2], "hidden_out": pair[(index + 1) % 2]}
        blocks.bind(block.name, "encode", arrays | {"condition": condition})
    pair[0][:] = np.random.default_rng(0).standard_normal(pair[0].shape)
    condition[:] = 0.1
    return pair[0]


def measure(bundle: Bundle, asked: argparse.Namespace) -> None:
    """Steps with room for all blocks and for shares of them, in rounds."""
    names = [block.name for block in bundle.plan.blocks]
    size = sum(block.weights_bytes for block in bundle.plan.blocks)
    alone = Engine(bundle, asked.threads)
    bind(bundle, alone)
    say("measure the blocks alone")
    timings = measure_functions(bundle.plan, alone)
    units = timings.units([(name, "encode") for name in names])
    least = bound(units)
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    said: dict[str, float] = {}
    ends: dict[str, Any] = {}
    for round_ in range(asked.rounds):
        for room in ("all", *asked.rooms):
            return_freed()
            before, engine = resident_bytes(), Engine(bundle, asked.threads)
            forget_peak()
            blocks: Any = ResidentBlocks(bundle.plan, engine)
            if room != "all":
                orders = {"encode": tuple((name, "encode") for name in names)}
                budget = int(size * Fraction(room))
                blocks = StreamedBlocks(bundle.plan, engine, timings, budget, orders)
            first = bind(bundle, blocks)
            noise = first.copy()
            blocks.open() if room == "all" else blocks.start()
            blocks.expect("encode", 1 + STEPS)
            for step in range(1 + STEPS):
                first[:] = noise
                started = time.perf_counter()
                for name in names:
                    blocks.run(name, "encode")
                if step:
                    times.setdefault(room, []).append((time.perf_counter() - started) * 1e3)
            ends[room] = first.copy()
            peaks[room] = max(peaks.get(room, 0.0), (peak_rss_bytes() - before) / 1e6)
            if room != "all":
                said[room] = blocks.schedules["encode"].pass_ms
                blocks.close()
            for name in names:
                engine.unload(name)
            say(f"  round {round_ + 1}: {room}")
    tokens = bundle.plan.blocks[0].functions[0].inputs[0].shape[1]
    print(f"\n{len(names)} blocks of {size / len(names) / 1e6:.0f} MB, {tokens} tokens\n")
    print("| room for blocks | more resident | a step, ms | planned | of bound | of all | apart |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    whole = float(np.median(times["all"]))
    for room, found in times.items():
        ms = float(np.median(found))
        what = "all" if room == "all" else f"{room}, {size * Fraction(room) / 1e6:.0f} MB"
        plan = f"{said[room]:.0f}" if room in said else ""
        apart = np.abs(ends[room] - ends["all"]).max() / np.abs(ends["all"]).max()
        shown = f"{ms:.0f} / {np.percentile(found, 90):.0f}"
        print(
            f"| {what} | {peaks[room]:.0f} MB | {shown} | {plan} | {ms / least:.2f} |"
            f" {ms / whole:.2f} | {apart:.0e} |"
        )


if __name__ == "__main__":
    main()
