"""One `torch.export` per function, and the check that every target relies on.

Functions of one shape are traced once: `signature` says which, and the weights of another block of
the same signature go into the same graph by name.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from edgevlm.bundle import functions
from edgevlm.bundle.functions import Block, Function
from edgevlm.errors import TraceError
from edgevlm.libraries import first_line

# Operators that break at least one target, or give it a shape that depends on data. Their variants
# (`scatter_add`, `unique_consecutive`, `_cdist_forward`) are refused with them, and so is `index`
# by a mask.
BANNED = (
    "sort",
    "argsort",
    "nonzero",
    "masked_select",
    "scatter",
    "unique",
    "isin",
    "cdist",
    "while_loop",
    "index_put",
    "bucketize",
    "randperm",
    "item",
    "local_scalar_dense",
)
MOST_DIMENSIONS = 5
DTYPES = {
    name: torch.from_numpy(np.empty(0, kind)).dtype for name, kind in functions.DTYPES.items()
}
_VARIANT = re.compile(rf"_*(?:{'|'.join(BANNED)})\d*(?:_.*)?")


def trace(module: nn.Module, function: Function, block: Block) -> ExportedProgram:
    """Export `module` for the shapes of `function`, and check the graph.

    Raises:
        TraceError: If the module cannot be exported or its graph breaks a rule.
    """
    where = f"{block.name}.{function.name}"
    try:
        with torch.no_grad():
            program = torch.export.export(module, example(function), strict=False)
    except Exception as cause:  # torch.export raises many types; the first line says what happened
        line = first_line(cause)
        raise TraceError(f"{where} cannot be traced: {line}") from cause
    check(program, where)
    check_states(program, function, where)
    return program


def example(function: Function) -> tuple[torch.Tensor, ...]:
    """Zeros of the function's input shapes."""
    return tuple(torch.zeros(t.shape, dtype=DTYPES[t.dtype]) for t in function.inputs)


def check(program: ExportedProgram, where: str) -> None:
    """Refuse banned operators, symbolic dimensions and tensors of too many dimensions.

    Raises:
        TraceError: Naming the function and the operator or value.
    """
    for node in program.graph.nodes:
        if node.op == "call_function":
            _check_operator(node, where)
        value = node.meta.get("val")
        for tensor in value if isinstance(value, tuple | list) else (value,):
            _check_value(tensor, node.name, where)


def check_states(program: ExportedProgram, function: Function, where: str) -> None:
    """Refuse a graph that could read a state after it has written the new one.

    Both are one array where a target writes in place, so all that reads the old state must come
    before what makes the new one, whatever order an engine takes.

    Raises:
        TraceError: Naming the function and the state.
    """
    if not function.caches:
        return
    nodes = {node.name: node for node in program.graph.nodes}
    graph, inputs, outputs = program.graph_signature, function.inputs, function.outputs
    given = {t.name: name for t, name in zip(inputs, graph.user_inputs, strict=True)}
    made = {t.name: name for t, name in zip(outputs, graph.user_outputs, strict=True)}
    for cache in (cache for cache in function.caches if cache.output):
        before, queue = set[fx.Node](), [nodes[made[cache.output]]]
        while queue:
            new = set(queue.pop().all_input_nodes) - before
            before |= new
            queue += new
        if not set(nodes[given[cache.input]].users) <= before:
            raise TraceError(
                f"{where}: '{cache.input}' may be read after '{cache.output}' is written over it;"
                " make each of its readers an input of what is written"
            )


def _check_operator(node: fx.Node, where: str) -> None:
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    if _VARIANT.fullmatch(name):
        raise TraceError(f"{where}: operator '{name}' breaks a target; write it without")
    masks = (torch.bool, torch.uint8)
    if name == "index" and any(n.meta["val"].dtype in masks for n in node.all_input_nodes[1:]):
        raise TraceError(f"{where}: operator 'index' by a mask breaks a target; write it without")


def _check_value(value: object, name: str, where: str) -> None:
    if isinstance(value, torch.Tensor):
        if not all(type(size) is int for size in value.shape):
            raise TraceError(f"{where}: '{name}' has a symbolic shape {value.shape}")
        if value.dim() > MOST_DIMENSIONS:
            raise TraceError(
                f"{where}: '{name}' has {value.dim()} dimensions, Core ML takes {MOST_DIMENSIONS}"
            )
    elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise TraceError(f"{where}: '{name}' is a symbolic number")


def signature(module: nn.Module, block: Block) -> Hashable:
    """Equal for blocks whose graphs are equal but for the values of their weights."""
    tensors = [(name, tuple(t.shape), t.dtype) for name, t in weights(module).items()]
    shapes = [(f.name, f.inputs, f.outputs) for f in block.functions]
    return block.stage, repr(module), tuple(tensors), tuple(shapes)


def with_weights(program: ExportedProgram, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The traced function as a module over the weights of another block of its signature.

    A weight that is a part of a larger tensor (rows of the vocabulary) is copied: tools that copy a
    module would take the whole with it.
    """
    module: fx.GraphModule = program.module()
    known = module.state_dict()
    own = {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in tensors.items()
        if name in known
    }
    module.load_state_dict(own, strict=False, assign=True)  # a copy would go into the traced one
    return module


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by the names that the trace uses."""
    return dict(module.named_parameters()) | dict(module.named_buffers())
