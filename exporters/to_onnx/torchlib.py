"""The table of operators that torch.onnx reads anew for every graph, read once.

`torch.onnx.export` reads the functions of onnxscript's torchlib for every graph: 0.28 s of the
0.42 s that a graph of one operator takes, with the same table each time.

Source: torch 2.13, `ONNXRegistry.from_torchlib` (torch/onnx/_internal/exporter/_registration.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

from edgevlm.exporters.repeats import without_repeats
from edgevlm.libraries import replaced

_read = ONNXRegistry.from_torchlib


@contextmanager
def tables_read_once() -> Iterator[None]:
    """Inside, torch.onnx gets a copy of the table of earlier graphs; it may add to its copy."""
    with replaced(ONNXRegistry, "from_torchlib", staticmethod(_copy)), without_repeats():
        yield


def _copy(opset_version: int) -> ONNXRegistry:
    table = copy.copy(_table(opset_version))
    table.functions = {name: list(found) for name, found in table.functions.items()}
    return table


@cache
def _table(opset_version: int) -> ONNXRegistry:
    return _read(opset_version=opset_version)
