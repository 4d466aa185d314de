"""Tables of torch that every conversion reads anew, read once.

`torch.onnx.export` reads the functions of onnxscript's torchlib for every graph: 0.28 s of the
0.42 s that a graph of one operator takes, with the same table each time. A decomposition lists the
dispatcher's operators once for each of 35 namespaces; during a conversion nobody adds to them.

Source: torch 2.13, `ONNXRegistry.from_torchlib` (torch/onnx/_internal/exporter/_registration.py)
and `_materialize_cpp_cia_ops` (torch/_export/utils.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch._export import utils
from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = ONNXRegistry.from_torchlib


@contextmanager
def tables_read_once() -> Iterator[None]:
    """Inside, torch.onnx gets a copy of the table of earlier graphs; it may add to its copy."""
    torchlib, listing = vars(ONNXRegistry)["from_torchlib"], utils._materialize_cpp_cia_ops
    ONNXRegistry.from_torchlib = staticmethod(_copy)  # type: ignore[assignment, method-assign]
    utils._materialize_cpp_cia_ops = cache(listing)
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = torchlib  # type: ignore[method-assign]
        utils._materialize_cpp_cia_ops = listing


def _copy(opset_version: int) -> ONNXRegistry:
    table = copy.copy(_table(opset_version))
    table.functions = {name: list(found) for name, found in table.functions.items()}
    return table


@cache
def _table(opset_version: int) -> ONNXRegistry:
    return _read(opset_version=opset_version)
