"""The blocks of a plan: which parts each holds, its functions, bytes and FLOPs.

Blocks are cut by the float32 bytes of the modules' tensors, so they are the same in every scheme;
their own bytes are those of the scheme. FLOPs are counted by running each function on tensors
without data (torch's FlopCounterMode: 2 per multiply-add).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.host import EncoderShape, Signal
from edgevlm.bundle.kinds.vlm import VlmHost, functions, signature
from edgevlm.exporters.contract import Target
from edgevlm.graphs.blocks import build, cut, cut_rows
from edgevlm.graphs.merging import layer_tokens
from edgevlm.graphs.parts import DecoderParts, EncoderParts, ModelParts
from edgevlm.graphs.signals import Observed, signal_width
from edgevlm.graphs.trace import DTYPES
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.recipe import Recipe


@dataclass(frozen=True)
class Stored:
    """Bytes of weights in their files: what a target makes of them under a recipe's schemes."""

    target: Target
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
    host: VlmHost,
    limit: int,
    parts: ModelParts,
    description: Description,
    method: Any,
    stored: Stored,
) -> tuple[Block, ...]:
    """All blocks in the order in which a prompt runs them.

    Args:
        host: The constants of the plan.
        limit: Block size in bytes of float32.
        parts: The model, with or without memory for its weights.
        description: The family's numbers.
        method: The method of site `tokens`.
        stored: Bytes of weights in their files.
    """
    joined = None if parts.pruning is None else parts.pruning.joined
    blocks = [
        *_stage("vision", parts.encoder.modules, limit, stored),
        Block("reduce-0", "reduce", (0, 1), 0, ()),
        *_stage("decoder", _decoder_parts(parts.decoder), limit, stored, joined),
        *_head(host, limit, parts, stored),
    ]
    return tuple(
        _count(_with_functions(host, block), parts, method, description.shape) for block in blocks
    )


def encoder_shape(
    encoder: EncoderParts, description: Description, names: Sequence[str]
) -> EncoderShape:
    """Sizes inside an encoder that has its methods, with the signals of these names."""
    parts = {
        name: index
        for index, module in enumerate(encoder.modules)
        if isinstance(module, Observed)
        for name in module.names
    }
    return EncoderShape(
        encoder.spec.width,
        layer_tokens(encoder),
        description.view_tokens,
        tuple(Signal(name, parts[name], signal_width(encoder.spec, name)) for name in names),
    )


def _stage(
    stage: str,
    parts: Sequence[Sequence[nn.Module] | nn.Module],
    limit: int,
    stored: Stored,
    joined: int | None = None,
) -> list[Block]:
    """Blocks of a stage that is cut between its parts."""
    modules = [part if isinstance(part, Sequence) else (part,) for part in parts]
    sizes = [sum(map(_bytes, part)) for part in modules]
    blocks = []
    for index, (start, stop) in enumerate(cut(sizes, limit, joined)):
        size = sum(stored.module(m, stage) for part in modules[start:stop] for m in part)
        blocks.append(Block(f"{stage}-{index}", stage, (start, stop), size, ()))
    return blocks


def _decoder_parts(decoder: DecoderParts) -> list[Sequence[nn.Module]]:
    """The layers, the norm with the last."""
    *layers, last = decoder.layers
    return [*((layer,) for layer in layers), (last, decoder.norm)]


def _head(host: VlmHost, limit: int, parts: ModelParts, stored: Stored) -> list[Block]:
    """Blocks of the head, cut by rows of the vocabulary."""
    channels = host.embedding.columns
    shares = "embedding" if parts.tied else ""
    return [
        Block(
            f"head-{index}",
            "head",
            (start, stop),
            stored.matrix(stop - start, channels, "head"),
            (),
            shares,
        )
        for index, (start, stop) in enumerate(cut_rows(parts.head.shape[0], 4 * channels, limit))
    ]


def _with_functions(host: VlmHost, block: Block) -> Block:
    names = functions(host, block.stage)
    return replace(
        block, functions=tuple(signature(host, block, name).function(name) for name in names)
    )


def _count(block: Block, parts: ModelParts, method: Any, shape: VisualShape) -> Block:
    """Fill in the FLOPs of each function."""
    module = build(block, parts, method, shape)
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
