"""Graphs without weights: one session serves all blocks whose graphs are equal.

    artifact -> weights become inputs, the block's name is removed -> one session for equal graphs
    weights  -> mapped from the block's file -> bound to those inputs without a copy

So a block is loaded by mapping its file: nothing is parsed, copied or packed.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import RuntimeLoadError
from edgevlm.runtimes.on_onnxruntime.graphs import EXTERNAL, read_graph

AROUND = 65_536  # bytes that Linux maps at a page fault by default (fault-around)
_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}


@dataclass(frozen=True)
class MappedWeight:
    """A weight that has become an input of its graph, and its place in a file."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)


def without_weights(artifact: Path) -> tuple[bytes, tuple[MappedWeight, ...]]:
    """A graph with its external weights as inputs, and these weights.

    Raises:
        RuntimeLoadError: If it is not an ONNX graph, or has a weight of an unsupported type.
    """
    model = read_graph(artifact)
    try:
        weights = [_weight(x) for x in model.graph.initializer if x.data_location == EXTERNAL]
    except (KeyError, ValueError) as cause:
        raise RuntimeLoadError(
            f"'{artifact.name}' is not an ONNX graph of this exporter: {cause!r}"
        ) from cause
    for index in reversed(range(len(model.graph.initializer))):
        if (tensor := model.graph.initializer[index]).data_location == EXTERNAL:
            value = model.graph.input.add(name=tensor.name).type.tensor_type
            value.elem_type = tensor.data_type
            for size in tensor.dims:
                value.shape.dim.add(dim_value=size)
            del model.graph.initializer[index]
    del model.metadata_props[:]  # the block's name
    return model.SerializeToString(deterministic=True), tuple(weights)


class Maps:
    """Mapped regions of files; a region in use is not mapped twice."""

    def __init__(self) -> None:
        self._open: WeakValueDictionary[tuple[Path, int, int], mmap.mmap] = WeakValueDictionary()

    def weights(
        self, weights: Sequence[MappedWeight], files: Mapping[str, Path]
    ) -> dict[str, NDArray[Any]]:
        """Weights by name, mapped from their files; their pages are read now.

        Args:
            weights: The weights of one block.
            files: Paths of the files that hold them, by the name in the graph.

        Raises:
            RuntimeLoadError: If a weight is not inside its file.
        """
        arrays, ends = dict[str, NDArray[Any]](), dict[str, tuple[int, int]]()
        sizes = {name: path.stat().st_size for name, path in files.items()}
        for weight in weights:
            if not 0 <= weight.offset <= sizes.get(weight.file, 0) - weight.bytes:
                raise RuntimeLoadError(f"weight '{weight.name}' is not inside '{weight.file}'")
            first, last = ends.get(weight.file, (weight.offset, 0))
            last = max(last, weight.offset + weight.bytes)
            ends[weight.file] = min(first, weight.offset), last
        for weight in weights:
            first, last = ends[weight.file]
            first -= first % mmap.ALLOCATIONGRANULARITY
            region = self._region(files[weight.file], first, last)
            count = math.prod(weight.shape)
            numbers = np.frombuffer(region, weight.dtype, count, weight.offset - first)
            numbers.view(np.uint8)[::AROUND].max(initial=0)
            arrays[weight.name] = numbers.reshape(weight.shape)
        return arrays

    def _region(self, path: Path, first: int, last: int) -> mmap.mmap:
        region = self._open.get((path, first, last))
        if region is None:
            with path.open("rb") as file:
                region = mmap.mmap(
                    file.fileno(), last - first, access=mmap.ACCESS_READ, offset=first
                )
            self._open[path, first, last] = region
        return region


def _weight(tensor: Any) -> MappedWeight:
    external = {entry.key: entry.value for entry in tensor.external_data}
    weight = MappedWeight(
        tensor.name,
        _TYPES[tensor.data_type],
        tuple(tensor.dims),
        external["location"],
        int(external.get("offset", 0)),
    )
    if min(weight.shape, default=0) < 0:
        raise ValueError(f"'{weight.name}' has a shape of {weight.shape}")
    return weight
