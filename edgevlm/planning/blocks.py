"""The blocks of a plan: which pieces each holds, the shapes of its functions, bytes and FLOPs.

Blocks are cut by the float32 bytes of the pieces' tensors, so they are the same in every scheme;
their own bytes are those of the scheme. FLOPs are counted by running each function on tensors
without data (torch's FlopCounterMode: 2 per multiply-add).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from edgevlm.bundle.plan import Block, Function, Host, Tensor
from edgevlm.graphs.blocks import build, cut, cut_rows
from edgevlm.graphs.merging import hidden_shapes, merges
from edgevlm.graphs.signals import Observed, signal_shape
from edgevlm.graphs.trace import DTYPES
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description, ModelParts
from edgevlm.recipe import Recipe

Call = tuple[str, list[Tensor], list[Tensor]]  # name, inputs, outputs


@dataclass(frozen=True)
class Stored:
    """Bytes of weights in their files: what a target makes of them under a recipe's schemes."""

    target: Any
    recipe: Recipe

    def matrix(self, rows: int, columns: int, stage: str) -> int:
        """Bytes of the matrix of a linear layer."""
        scheme = self.recipe.scheme(stage)
        size: int = self.target.matrix_bytes(rows, columns, scheme, stage)
        return size

    def module(self, module: torch.nn.Module, stage: str) -> int:
        """Bytes of the tensors of a module, each once."""
        matrices = {m.weight for m in module.modules() if isinstance(m, torch.nn.Linear)}
        others = {*module.parameters(), *module.buffers()} - matrices
        numbers = sum(tensor.numel() for tensor in others)
        each: int = self.target.number_bytes(self.recipe.scheme(stage))
        return numbers * each + sum(self.matrix(m.shape[0], m.shape[1], stage) for m in matrices)


def make_blocks(
    host: Host,
    limit: int,
    kept: int,
    pieces: ModelParts,
    description: Description,
    method: Any,
    stored: Stored,
) -> tuple[Block, ...]:
    """All blocks in the order in which a prompt runs them.

    Args:
        host: Image, embedding, cache and chunk of the plan.
        limit: Block size in bytes of float32.
        kept: K.
        pieces: The model, with or without memory for its weights.
        description: The family's numbers.
        method: The method of site `tokens`.
        stored: Bytes of weights in their files.
    """
    blocks = [
        *_vision(host, limit, pieces, description, stored),
        _reduce(host, kept, pieces, description, method),
        *_decoder(host, limit, pieces, method.calibrate, stored),
        *_head(host, limit, pieces, stored),
    ]
    return tuple(_count(block, pieces, method, description.shape) for block in blocks)


def _vision(
    host: Host, limit: int, pieces: ModelParts, description: Description, stored: Stored
) -> list[Block]:
    image, sizes = host.image, [_bytes(piece) for piece in pieces.vision]
    features = (1, description.view_tokens, host.embedding.columns)
    blocks = []
    for index, (start, stop) in enumerate(cut(sizes, limit)):
        given = [Tensor("pixel_values", "f32", (1, 3, image.height, image.width))]
        if start > 0:
            given = hidden_shapes(pieces, start)
        made = [Tensor("features", "f32", features)]
        if stop < len(sizes):
            made = [replace(t, name=f"{t.name}_out") for t in hidden_shapes(pieces, stop)]
            if not any(merges(piece) for piece in pieces.vision[start:stop]):
                made = made[:1]
        observed = [p for p in pieces.vision[start:stop] if isinstance(p, Observed)]
        extra = _signals([n for p in observed for n in p.names], description.view_tokens, pieces)
        calls: list[Call] = [("encode", given, [*made, *extra])]
        size = sum(stored.module(piece, "vision") for piece in pieces.vision[start:stop])
        blocks.append(_block("vision", index, (start, stop), size, calls))
    return blocks


def _reduce(
    host: Host, kept: int, pieces: ModelParts, description: Description, method: Any
) -> Block:
    channels = host.embedding.columns
    total = host.image.views * description.view_tokens
    signals = _signals(method.signals, total, pieces)
    given = [Tensor("features", "f32", (1, total, channels)), *signals]
    made = [
        Tensor("visual_tokens", "f32", (1, kept, channels)),
        Tensor("kept_positions", "i32", (1, kept)),
    ]
    if method.calibrate:
        made.append(Tensor("log_sizes", "f32", (1, kept)))
    return _block("reduce", 0, (0, 1), 0, [("reduce", given, made)])


def _signals(names: Sequence[str], tokens: int, pieces: ModelParts) -> list[Tensor]:
    return [Tensor(name, "f32", signal_shape(pieces, name, tokens)) for name in names]


def _decoder(
    host: Host, limit: int, pieces: ModelParts, calibrated: bool, stored: Stored
) -> list[Block]:
    sizes = [_bytes(piece) for piece in pieces.decoder]
    sizes[-1] += _bytes(pieces.norm)
    blocks = []
    joined = None if pieces.pruning is None else pieces.pruning.joined
    for index, (start, stop) in enumerate(cut(sizes, limit, joined)):
        if pieces.pruning is None:
            rows = {"prefill": host.chunk, "decode": 1, "check": host.check}
            calls = [
                _step(host, name, count, stop - start, calibrated)
                for name, count in rows.items()
                if count
            ]
        else:
            calls = [_prompt(host, pieces, start, stop), _pruned_step(host, start, stop)]
        held = [*pieces.decoder[start:stop], *([pieces.norm] if stop == len(sizes) else [])]
        size = sum(stored.module(piece, "decoder") for piece in held)
        blocks.append(_block("decoder", index, (start, stop), size, calls))
    return blocks


def _prompt(host: Host, pieces: ModelParts, start: int, stop: int) -> Call:
    """`prefill` of a whole prompt where visual tokens leave inside the decoder."""
    pruning, kv, channels = pieces.pruning, host.kv, host.embedding.columns
    entering, leaving = pruning.entering(start), pruning.entering(stop)
    last = stop == kv.layers

    def state(visual: int, end: str = "") -> list[Tensor]:
        rows = host.chunk - (pruning.total - visual)
        return [
            Tensor(f"hidden{end}", "f32", (1, rows, channels)),
            Tensor(f"cos{end}", "f32", (1, rows, kv.head_size)),
            Tensor(f"sin{end}", "f32", (1, rows, kv.head_size)),
            # A tensor cannot be empty: where all are gone there is one row that nobody reads.
            Tensor(f"visual_rows{end}", "i32", (1, max(1, visual))),
            Tensor(f"last{end}", "i32", (1,)),
        ]

    made = state(leaving, "_out") if leaving < entering else state(leaving, "_out")[:1]
    if last:
        made = [Tensor("hidden_out", "f32", (1, 1, channels))]
    past, present = _caches(host, start, stop)
    return "prefill", [*state(entering), *past], [*made, *present]


def _pruned_step(host: Host, start: int, stop: int) -> Call:
    """`decode` of one row where visual tokens leave inside the decoder."""
    kv, hidden = host.kv, (1, 1, host.embedding.columns)
    given = [
        Tensor("hidden", "f32", hidden),
        Tensor("cos", "f32", (1, 1, kv.head_size)),
        Tensor("sin", "f32", (1, 1, kv.head_size)),
        Tensor("position", "i32", (1,)),
        Tensor("pruned", "i32", (1,)),
    ]
    past, present = _caches(host, start, stop)
    return "decode", [*given, *past], [Tensor("hidden_out", "f32", hidden), *present]


def _caches(host: Host, start: int, stop: int) -> tuple[list[Tensor], list[Tensor]]:
    """Caches of layers `start` to `stop` as inputs and as outputs."""
    parts = [
        (f"{part}_{layer - start}", host.kv.shape(layer))
        for layer in range(start, stop)
        for part in ("key", "value")
    ]
    past = [Tensor(f"past_{name}", "f32", shape) for name, shape in parts]
    return past, [Tensor(f"present_{name}", "f32", shape) for name, shape in parts]


def _step(host: Host, name: str, rows: int, layers: int, calibrated: bool) -> Call:
    """A decoder function over `rows` new tokens and the caches of `layers` layers."""
    kv, hidden = host.kv, (1, rows, host.embedding.columns)
    given = [
        Tensor("hidden", "f32", hidden),
        Tensor("cos", "f32", (1, rows, kv.head_size)),
        Tensor("sin", "f32", (1, rows, kv.head_size)),
        Tensor("mask", "f32", (1, 1, rows, kv.tokens)),
        Tensor("position", "i32", (1,)),
    ]
    if calibrated:
        given.append(Tensor("bias", "f32", (1, 1, 1, kv.tokens)))
    made = [Tensor("hidden_out", "f32", hidden)]
    cache = (1, kv.heads, kv.tokens, kv.head_size)
    for layer in range(layers):
        for part in ("key", "value"):
            given.append(Tensor(f"past_{part}_{layer}", "f32", cache))
            made.append(Tensor(f"present_{part}_{layer}", "f32", cache))
    return name, given, made


def _head(host: Host, limit: int, pieces: ModelParts, stored: Stored) -> list[Block]:
    channels = host.embedding.columns
    blocks = []
    for index, (start, stop) in enumerate(cut_rows(pieces.head.shape[0], 4 * channels, limit)):
        calls: list[Call] = [
            (
                name,
                [Tensor("hidden", "f32", (1, rows, channels))],
                [Tensor("logits", "f32", (rows, stop - start))],
            )
            for name, rows in (("logits", 1), ("check", host.check))
            if rows
        ]
        size = stored.matrix(stop - start, channels, "head")
        blocks.append(_block("head", index, (start, stop), size, calls))
    return blocks


def _block(stage: str, index: int, pieces: tuple[int, int], size: int, calls: list[Call]) -> Block:
    functions = tuple(Function(name, tuple(given), tuple(made), 0) for name, given, made in calls)
    return Block(f"{stage}-{index}", stage, pieces, size, functions)


def _count(block: Block, pieces: ModelParts, method: Any, shape: VisualShape) -> Block:
    """Fill in the FLOPs of each function."""
    module = build(block, pieces, method, shape)
    # The constants of `reduce` are real, so its inputs must be fake; all else has no data at all.
    real = block.stage == "reduce"
    functions = []
    for function in block.functions:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if real:
                with FakeTensorMode(allow_non_fake_inputs=True):
                    module(*_inputs(function, "cpu"))
            else:
                with torch.device("meta"):  # constants too
                    module.to("meta")(*_inputs(function, "meta"))
        functions.append(replace(function, flops=int(counter.get_total_flops())))
    return replace(block, functions=tuple(functions))


def _inputs(function: Function, device: str) -> list[torch.Tensor]:
    return [torch.empty(t.shape, dtype=DTYPES[t.dtype], device=device) for t in function.inputs]


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in {*module.parameters(), *module.buffers()}) * 4
