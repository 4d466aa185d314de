"""The blocks of a plan: which parts each holds, its functions, bytes and FLOPs.

Blocks are cut by the float32 bytes of the modules' tensors, so they are the same in every scheme;
their own bytes are those of the scheme. FLOPs are counted by running each function on tensors
without data (torch's FlopCounterMode: 2 per multiply-add).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.host import EncoderShape, Signal
from edgevlm.exporters.contract import Target
from edgevlm.graphs.blocks import cut
from edgevlm.graphs.merging import layer_tokens, leaves
from edgevlm.graphs.parts import EncoderParts
from edgevlm.graphs.signals import Observed
from edgevlm.graphs.trace import DTYPES, signature
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


def finished(
    blocks: Iterable[Block], kind: ModuleType, host: Any, build: Callable[[Block], nn.Module]
) -> tuple[Block, ...]:
    """The blocks with their functions, and the FLOPs of each.

    Args:
        blocks: In the order in which they are listed.
        kind: Of the bundle: its functions and their signatures.
        host: The constants of the plan.
        build: Makes the module of a block.
    """
    known: dict[Hashable, list[int]] = {}
    return tuple(_counted(_with_functions(kind, host, block), build, known) for block in blocks)


def stage_blocks(
    stage: str,
    parts: Sequence[Sequence[nn.Module] | nn.Module],
    limit: int,
    stored: Stored,
    border: int = 0,
) -> list[Block]:
    """Blocks of a stage that is cut between its parts.

    Args:
        stage: Its name.
        parts: Its modules, or several that stay together.
        limit: Block size in bytes of float32.
        stored: Bytes of weights in their files.
        border: A part with which a block begins in any case.
    """
    modules = [part if isinstance(part, Sequence) else (part,) for part in parts]
    sizes = [sum(map(_bytes, part)) for part in modules]
    behind = [(border + start, border + stop) for start, stop in cut(sizes[border:], limit)]
    blocks = []
    for index, (start, stop) in enumerate((*cut(sizes[:border], limit), *behind)):
        own = dict.fromkeys(module for part in modules[start:stop] for module in part)
        size = sum(stored.module(module, stage) for module in own)
        blocks.append(Block(f"{stage}-{index}", stage, (start, stop), size, ()))
    return blocks


def encoder_shape(
    encoder: EncoderParts, view_tokens: int, names: Sequence[str] = ()
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
        view_tokens,
        tuple(Signal(name, parts[name], encoder.spec.signal_width(name)) for name in names),
        encoder.spec.folded is not None or any(map(leaves, encoder.layers)),
    )


def _with_functions(kind: ModuleType, host: Any, block: Block) -> Block:
    names = kind.functions(host, block)
    functions = (kind.signature(host, block, name).function(name) for name in names)
    return replace(block, functions=tuple(functions))


def _counted(
    block: Block, build: Callable[[Block], nn.Module], known: dict[Hashable, list[int]]
) -> Block:
    """The block with the FLOPs of each function; those of a block with the same trace are known."""
    module = build(block)
    key = signature(module, block)
    if key not in known:
        known[key] = [_flops(block, function, module) for function in block.functions]
    pairs = zip(block.functions, known[key], strict=True)
    return replace(block, functions=tuple(replace(f, flops=flops) for f, flops in pairs))


def _flops(block: Block, function: Function, module: nn.Module) -> int:
    # The constants of `reduce` are real, so its inputs must be fake; all else has no data at all.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if block.stage == "reduce":
            with FakeTensorMode(allow_non_fake_inputs=True):
                module(*_inputs(function, "cpu"))
        else:
            with torch.device("meta"):  # constants too
                module.to("meta")(*_inputs(function, "meta"))
    return int(counter.get_total_flops())


def _inputs(function: Function, device: str) -> list[torch.Tensor]:
    return [torch.empty(t.shape, dtype=DTYPES[t.dtype], device=device) for t in function.inputs]


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in {*module.parameters(), *module.buffers()}) * 4
