"""torch.onnx's table of operators, read once instead of once a graph.

`torch.onnx.export` reads the 1,500 functions of onnxscript's torchlib for every graph that it
converts: 0.28 s of the 0.42 s that a graph of one operator takes, with the same table each time.

Source: `ONNXRegistry.from_torchlib` of torch 2.13 (torch/onnx/_internal/exporter/_registration.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = ONNXRegistry.from_torchlib


@contextmanager
def table_read_once() -> Iterator[None]:
    """Inside, torch.onnx gets a copy of the table of earlier graphs; it may add to its copy."""
    before = vars(ONNXRegistry)["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(_copy)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = before  # type: ignore[method-assign]


def _copy(opset_version: int) -> ONNXRegistry:
    table = copy.copy(_table(opset_version))
    table.functions = {name: list(found) for name, found in table.functions.items()}
    return table


@cache
def _table(opset_version: int) -> ONNXRegistry:
    return _read(opset_version=opset_version)
