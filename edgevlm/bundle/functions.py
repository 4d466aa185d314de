"""Functions and blocks: the graphs of a bundle, with their input and output tensors.

A function is a static graph. Its inputs and outputs are named tensors; two kinds of pairs among
them are listed explicitly, so that no code has to parse names:

    caches   an input and an output that share one array: the state from call to call
    chained  an output, and the input of the next block of the stage that takes it
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# Dtypes of tensors, by their names in manifests.
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i64": np.int64, "u8": np.uint8}


@dataclass(frozen=True)
class Tensor:
    """Name, dtype (a key of `DTYPES`) and static shape of an input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its elements."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def zeros(self) -> NDArray[np.generic]:
        """An array of this shape and dtype."""
        return np.zeros(self.shape, DTYPES[self.dtype])


@dataclass(frozen=True)
class Cache:
    """An input and an output that share one array.

    Attributes:
        name: The target's name for the state; empty where it is an array of the host alone: other
            blocks read it too, or the target's states are too coarse for it.
        input: The input.
        output: The output; empty where the block reads an array that another one writes.
    """

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class Chain:
    """An output, and the input of the next block that takes it."""

    output: str
    input: str


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a function.

    `unread` are inputs that a graph may lack, because some targets drop unused inputs.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    caches: tuple[Cache, ...] = ()
    chained: tuple[Chain, ...] = ()
    unread: frozenset[str] = frozenset()

    def function(self, name: str) -> Function:
        """The function of this signature, without FLOPs and file."""
        return Function(name, self.inputs, self.outputs, 0, self.caches, self.chained)


@dataclass(frozen=True)
class Function:
    """One static graph of a block. `file` is its artifact inside the bundle, empty in a plan."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: int = 0
    caches: tuple[Cache, ...] = ()
    chained: tuple[Chain, ...] = ()
    file: str = ""

    @cached_property
    def fed(self) -> tuple[Tensor, ...]:
        """Inputs except caches, in order."""
        cached = {cache.input for cache in self.caches}
        return tuple(tensor for tensor in self.inputs if tensor.name not in cached)

    @cached_property
    def results(self) -> tuple[Tensor, ...]:
        """Outputs except caches, in order."""
        cached = {cache.output for cache in self.caches}
        return tuple(tensor for tensor in self.outputs if tensor.name not in cached)

    @cached_property
    def passed_in(self) -> tuple[Tensor, ...]:
        """Inputs except the caches that a target keeps as states, in order."""
        kept = {cache.input for cache in self.caches if cache.name}
        return tuple(tensor for tensor in self.inputs if tensor.name not in kept)

    @cached_property
    def passed_out(self) -> tuple[Tensor, ...]:
        """Outputs except the caches that a target keeps as states, in order."""
        kept = {cache.output for cache in self.caches if cache.name}
        return tuple(tensor for tensor in self.outputs if tensor.name not in kept)

    @cached_property
    def links(self) -> dict[str, str]:
        """The input of the next block that takes an output, by output."""
        return {chain.output: chain.input for chain in self.chained}

    def cached(self) -> Iterator[tuple[Cache, Tensor]]:
        """Each cache with its input."""
        tensors = {tensor.name: tensor for tensor in self.inputs}
        return ((cache, tensors[cache.input]) for cache in self.caches)

    def tensor(self, name: str) -> Tensor:
        """The input or output called `name`."""
        return next(t for t in (*self.inputs, *self.outputs) if t.name == name)


@dataclass(frozen=True)
class Block:
    """A contiguous part of a stage; its functions share one copy of `weights_bytes`.

    `span` is the half-open range of the stage's parts in the block: layers of the decoder, rows of
    the head's vocabulary. `shares` names the host table that holds the block's weights (`embedding`
    for a tied head), so that they are counted and written once; empty for a block with its own.
    """

    name: str
    stage: str
    span: tuple[int, int]
    weights_bytes: int
    functions: tuple[Function, ...]
    shares: str = ""

    def function(self, name: str) -> Function:
        """The function called `name`."""
        return next(f for f in self.functions if f.name == name)


@dataclass(frozen=True)
class Stage:
    """A stage of a kind.

    Attributes:
        name: Its name in plans and file paths.
        quantized: Whether schemes quantize its weights.
        label: Its name on pages.
        colour: Its colour in charts, as a name of the page's palette.
    """

    name: str
    quantized: bool
    label: str
    colour: str
