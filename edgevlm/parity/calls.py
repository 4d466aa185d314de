"""Blocks in an engine beside the same blocks in PyTorch; how far they differ, function by function.

A block is loaded, all its calls are made, and it is unloaded, so memory stays at one block whatever
the size of the model. This serves every kind of plan; a kind's driver chooses the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import DTYPES, Block, Function
from edgevlm.bundle.plan import Plan
from edgevlm.models.weights.paging import in_memory
from edgevlm.parity.checks import Check, block_check
from edgevlm.parity.compare import Array, Comparator
from edgevlm.parity.verification import BlockParity
from edgevlm.planning.plan import Planned
from edgevlm.quantization.schemes import Threshold, threshold
from edgevlm.registry import engine_for
from edgevlm.runtimes.engine import PRIVATE, Engine, find_engine
from edgevlm.runtimes.residency.memory import return_freed
from edgevlm.units import TimeLeft


@dataclass
class BlockCalls:
    """The blocks of a bundle, on both sides.

    Attributes:
        bundle: The bundle; its functions have the inputs that are left in the artifact.
        planned: The plan that it was made from; its functions have all inputs.
        parts: The model; the type is that of the kind.
        progress: Called with one line per block.
        engine_name: Engine to use; None takes the first that runs the bundle's target.
        as_run: Load blocks in the mode of `run`, from what the engine built on this machine.
        float16_psnr_db: What PyTorch has in float16, by block, where tokens merge in it.
    """

    bundle: Bundle
    planned: Planned
    parts: Any
    progress: Callable[[str], None]
    engine_name: str | None = None
    as_run: bool = False
    float16_psnr_db: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = self.bundle.plan.recipe
        name = self.engine_name or engine_for(recipe.target)
        self.engine: Engine = find_engine(name)(self.bundle)
        self.comparator = Comparator()
        self.left = TimeLeft([block.stage for block in self.plan.blocks])
        stages = dict.fromkeys(block.stage for block in self.plan.blocks)
        self.thresholds: dict[str, Threshold] = {s: threshold(recipe.scheme(s)) for s in stages}

    @property
    def plan(self) -> Plan[Any]:
        """The plan whose functions have all inputs."""
        return self.planned.plan

    @contextmanager
    def open(self, block: Block) -> Iterator[OpenBlock]:
        """A block in memory for the length of a `with`."""
        index = [known.name for known in self.plan.blocks].index(block.name)
        rest = self.left.begin(index)
        self.progress(f"verify {block.name} ({index + 1} of {len(self.plan.blocks)}){rest}")
        module = self.planned.build(block, self.parts)
        return_freed()  # what the block before took
        self.engine.load(block.name, mode=self.engine.resident_mode if self.as_run else PRIVATE)
        try:
            artifact = self.bundle.plan.block(block.name)
            with in_memory(module):
                yield OpenBlock(self.engine, artifact, module, self.comparator)
        finally:
            self.engine.unload(block.name)

    def note_float16(self, block: Block, psnr_db: float | None) -> None:
        """What PyTorch has in float16 for one call of a block; the worst counts."""
        if psnr_db is not None:
            known = self.float16_psnr_db.get(block.name, psnr_db)
            self.float16_psnr_db[block.name] = min(psnr_db, known)

    def results(self) -> tuple[list[BlockParity], list[Check]]:
        """Every function in the plan's order, measured and checked.

        Raises:
            KeyError: If a function was never called.
        """
        blocks, checks = [], []
        for block in self.plan.blocks:
            half = self.float16_psnr_db.get(block.name)
            for function in block.functions:
                name = block.name, function.name
                measured = self.comparator.rel_error(*name), self.comparator.psnr_db(*name)
                check = block_check(*name, self.thresholds[block.stage], *measured, half)
                blocks.append(BlockParity(*name, *measured, check.ok, half))
                checks.append(check)
        return blocks, checks

    def largest_float16(self) -> dict[str, tuple[float, str]]:
        """The largest number in float16 of each function, and what gave it, if the engine knows."""
        return {
            f"{block}.{function}": max((top, kind) for kind, top in tops.items())
            for (block, function), tops in self.engine.largest.items()
        }


@dataclass(frozen=True)
class OpenBlock:
    """A loaded block, and the same block in PyTorch.

    Functions are those of the plan, which name all inputs. A graph in a bundle may lack inputs that
    nothing reads; the engine gets those of its own.
    """

    engine: Any
    artifact: Block
    module: nn.Module
    comparator: Comparator

    def run(
        self,
        function: Function,
        values: Mapping[str, Array],
        caches: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Call the engine.

        Args:
            function: What to call.
            values: Inputs by name; others than the function's are left out.
            caches: Arrays of the cache by input and by output name; written in place.

        Returns:
            New arrays, by name, of the outputs that are no caches.
        """
        name, caches = self.artifact.name, caches or {}
        inputs = {
            tensor.name: np.ascontiguousarray(values[tensor.name])
            for tensor in self.artifact.function(function.name).inputs
            if tensor.name not in caches
        }
        outputs = {
            tensor.name: np.zeros(tensor.shape, DTYPES[tensor.dtype])
            for tensor in function.outputs
            if tensor.name not in caches
        }
        self.engine.bind(name, function.name, {**inputs, **outputs, **caches})
        self.engine.run(name, function.name)
        self.engine.sync(name)
        return outputs

    def expected(self, function: Function, values: Mapping[str, Array]) -> dict[str, Array]:
        """Call PyTorch on the same inputs, caches among them: all outputs by name."""
        inputs = (torch.from_numpy(values[tensor.name]) for tensor in function.inputs)
        outputs = self.module(*inputs)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        pairs = zip(function.outputs, outputs, strict=True)
        return {tensor.name: output.numpy() for tensor, output in pairs}

    def compare(
        self, function: Function, actual: Mapping[str, Array], expected: Mapping[str, Array]
    ) -> None:
        """Take the outputs of one call into the measures of its function."""
        self.comparator.add(self.artifact.name, function.name, actual, expected)
