"""Operators of a trace replaced by those of ONNX Runtime, in the trace's own graph.

    a node whose operator is in `operators.LOWERINGS`
        -> its function, traced once for the shapes of the node's inputs
        -> the nodes of that trace, in the node's place

`ExportedProgram.run_decompositions` gives the same graph, but runs all of it anew, as torch.onnx
does once more behind it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from edgevlm.exporters.to_onnx.operators import LOWERINGS

# What says where a node comes from; torch.export asks for it.
ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "from_node")
_TRACES = dict[Hashable, fx.Graph]()  # of all graphs, as they repeat from layer to layer


def lower_operators(program: ExportedProgram) -> None:
    """Replace the nodes of `LOWERINGS`, in place; outputs that nobody reads go."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        function = LOWERINGS.get(node.target) if node.op == "call_function" else None
        if function is not None:
            key = _form(node)
            if key not in _TRACES:
                _TRACES[key] = _traced(node, function)
            _replace(node, _copied(node, _TRACES[key]))
    graph.eliminate_dead_code()
    results = graph.output_node().args[0]
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, fx.Node):
            spec.arg.name = result.name
    program.graph_module.recompile()


def _form(node: fx.Node) -> Hashable:
    """Equal for nodes whose functions have equal traces."""
    numbers = {each: f"%{index}" for index, each in enumerate(node.all_input_nodes)}
    values = [each.meta["val"] for each in node.all_input_nodes]
    arguments = fx.map_arg((node.args, node.kwargs), numbers.__getitem__)
    return node.target, repr(arguments), tuple(_layout(value) for value in values)


def _layout(value: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tuple(value.shape), value.stride(), value.dtype


def _traced(node: fx.Node, function: Callable[..., object]) -> fx.Graph:
    """The graph of a node's function; its inputs are `all_input_nodes` of the node."""
    inputs = node.all_input_nodes

    def run(*tensors: Tensor) -> object:
        given = dict(zip(inputs, tensors, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return function(*args, **kwargs)

    with FakeTensorMode():
        values = [_fake(each.meta["val"]) for each in inputs]
        traced: fx.GraphModule = make_fx(run)(*values)
    return traced.graph


def _fake(value: Any) -> Any:
    """A value of the same layout in the mode that is on; what is no tensor stays."""
    if not isinstance(value, Tensor):
        return value
    shape, stride, dtype = _layout(value)
    return torch.empty_strided(shape, stride, dtype=dtype)


def _copied(node: fx.Node, traced: fx.Graph) -> Any:
    """Copy a function's graph to before the node; gives the node of its result, or of each."""
    origin = {key: node.meta[key] for key in ORIGIN if key in node.meta}
    copies = dict(zip(traced.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    mode = node.all_input_nodes[0].meta["val"].fake_mode
    with mode, node.graph.inserting_before(node):
        for inner in traced.nodes:
            if inner.op == "call_function":
                copies[inner] = node.graph.node_copy(inner, copies.__getitem__)
                copies[inner].meta |= origin | {"val": tree_map(_fake, inner.meta["val"])}
    return fx.map_arg(traced.output_node().args[0], copies.__getitem__)


def _replace(node: fx.Node, results: Any) -> None:
    """Give the node's users the results, and remove it."""
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            node.graph.erase_node(user)
    node.graph.erase_node(node)
