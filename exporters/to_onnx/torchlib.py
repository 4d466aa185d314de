"""What torch.onnx and its optimizer do for every graph or node, though the answer is known.

`torch.onnx.export` reads the functions of onnxscript's torchlib for every graph: 0.28 s of the
0.42 s that a graph of one operator takes, with the same table each time. The optimizer prepares a
match of each of its rules at each node; most rules begin with another operator. torch writes and
compiles Python code of a graph after each pass, though few of them run; ExecuTorch needs it.

Source: torch 2.13, `ONNXRegistry.from_torchlib` (torch/onnx/_internal/exporter/_registration.py)
and `_LazyGraphModule` (torch/fx/_lazy_graph_module.py); onnxscript 0.7, `RewriteRule.try_rewrite`
and `NodePattern.matches` (onnxscript/rewriter).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter._rewrite_rule import RewriteRule
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.onnx._internal.exporter._registration import ONNXRegistry

from edgevlm.exporters.repeats import without_repeats
from edgevlm.libraries import replaced

_read, _try = ONNXRegistry.from_torchlib, RewriteRule.try_rewrite


@contextmanager
def tables_read_once() -> Iterator[None]:
    """Inside, torch.onnx gets a copy of the table of earlier graphs; it may add to its copy."""
    with (
        replaced(ONNXRegistry, "from_torchlib", staticmethod(_copy)),
        replaced(RewriteRule, "try_rewrite", _tried),
        _use_lazy_graph_module(True),
        without_repeats(),
    ):
        yield


def _tried(rule: RewriteRule, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
    """The rule's own answer; None at once where its pattern ends in another operator."""
    pattern = rule._target_pattern
    operator = pattern.output_node.op_identifier() if pattern.has_single_output_node else None
    if operator is not None and operator[1] != node.op_type:
        return None
    return _try(rule, model, graph, node, **options)


def _copy(opset_version: int) -> ONNXRegistry:
    table = copy.copy(_table(opset_version))
    table.functions = {name: list(found) for name, found in table.functions.items()}
    return table


@cache
def _table(opset_version: int) -> ONNXRegistry:
    return _read(opset_version=opset_version)
