"""A traced function as a model of OpenVINO whose weights are inputs, to be filled block by block.

    traced function -> our operators in plain ones, weights as arguments -> OpenVINO's frontend

What writes a cache gives its new rows alone where nothing else in the graph reads the cache. The
output is then called `NAME@POSITION`: POSITION is the input that says where the rows belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgevlm.bundle.functions import Function
from edgevlm.exporters.to_openvino.library import (
    FrontEndManager,
    TorchFXPythonDecoder,
    apply_moc_transformations,
    openvino,
)
from edgevlm.exporters.to_openvino.operators import LOWERINGS, attention_kv, masks, written
from edgevlm.graphs.ops import ATTENTION_KV
from edgevlm.libraries import muted, silent

ROWS = "@"
LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class Converted:
    """A model whose weights are parameters.

    Attributes:
        model: Its inputs and weights are parameters, named; its outputs are results, named.
        weights: Names of the weights that it reads, in the order of the trace.
        matrices: Those of them that linear layers multiply with.
    """

    model: Any
    weights: tuple[str, ...]
    matrices: frozenset[str]


def convert(program: ExportedProgram, function: Function) -> Converted:
    """Convert a traced function.

    Raises:
        Exception: Of torch or OpenVINO, where an operator has no translation.
    """
    specs = program.graph_signature.input_specs
    constants = {
        spec.arg.name: program.constants[str(spec.target)]
        for spec in specs
        if spec.kind == InputKind.CONSTANT_TENSOR
    }
    held = {InputKind.PARAMETER, InputKind.BUFFER}
    weights = {spec.arg.name: str(spec.target) for spec in specs if spec.kind in held}
    given = [spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT]
    names = weights | dict(zip(given, (t.name for t in function.inputs), strict=True))
    rows = _rows(program.graph, names)
    plain = Plain(program.graph_module, names, rows, constants)
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    examples = tuple(torch.zeros(values[n].shape, dtype=values[n].dtype) for n in names)
    with silent(), muted(), torch.no_grad():
        lowered = torch.export.export(plain, examples, strict=False)
        decoder = TorchFXPythonDecoder.from_exported_program(lowered, dynamic_shapes=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        apply_moc_transformations(model, cf=True)  # constants folded, operators without effect gone
    placeholders = [n for n in lowered.graph.nodes if n.op == "placeholder"]
    arguments = [n.name for n in placeholders][-len(names) :] if names else []
    outputs = _outputs(program.graph, function, rows)
    _name(model, dict(zip(arguments, names.values(), strict=True)), examples, outputs)
    matrices = frozenset(
        weights[node.args[1].name]
        for node in program.graph.nodes
        if node.target is LINEAR and node.args[1].name in weights
    )
    read = {parameter.get_friendly_name() for parameter in model.get_parameters()}
    used = tuple(name for name in weights.values() if name in read)
    return Converted(model, used, matrices & read)


class Plain(nn.Module):
    """A trace in plain operators; all its weights and inputs are arguments."""

    def __init__(
        self,
        graph: fx.GraphModule,
        names: Mapping[str, str],
        rows: Mapping[str, str],
        constants: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.graph, self.names, self.rows = graph, names, rows
        self.constants = list(constants)
        for index, tensor in enumerate(constants.values()):
            self.register_buffer(f"constant_{index}", tensor)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Run the trace."""
        values = dict(zip(self.names, arguments, strict=True))
        values |= {n: getattr(self, f"constant_{i}") for i, n in enumerate(self.constants)}
        placed = [n.name for n in self.graph.graph.nodes if n.op == "placeholder"]
        outputs = _Rewriter(self.graph, self.rows).run(*(values[name] for name in placed))
        # An output that is also an input would not be an output of its own.
        return tuple(out.clone() for out in outputs)


class _Rewriter(fx.Interpreter):
    """Runs a trace with our operators in plain ones; see `_rows` for `rows`."""

    def __init__(self, graph: fx.GraphModule, rows: Mapping[str, str]) -> None:
        super().__init__(graph)
        self.rows = rows
        self._masks: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        if n.target is ATTENTION_KV:
            return self._attention(n)
        if n.target in LOWERINGS:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return LOWERINGS[n.target](*args, **kwargs)
        return super().run_node(n)

    def _attention(self, node: fx.Node) -> tuple[Tensor, ...]:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        query, key, value, key_cache, value_cache, mask, position, heads, *rest = args
        bias, window = rest[0] if rest else kwargs.get("bias"), kwargs.get("window", 0)
        added = node.args[8] if rest else node.kwargs.get("bias")
        place = (*node.args[5:7], added, window, query.shape[1])
        if place not in self._masks:  # layers share them
            self._masks[place] = masks(mask, position, query.shape[1], bias, window)
        numbers = kwargs.get("scale", 1.0), kwargs.get("softcap", 0.0)
        made = list(
            attention_kv(
                query, key, value, key_cache, value_cache, self._masks[place], heads, *numbers
            )
        )
        for reader in node.users:
            index: Any = reader.args[1]
            if index and reader.name not in self.rows:
                made[index] = written((key_cache, value_cache)[index - 1], made[index], position)
        return tuple(made)


def _rows(graph: fx.Graph, names: Mapping[str, str]) -> dict[str, str]:
    """Nodes that give the new rows of a cache, and the input that says where these belong.

    Caches that the graph reads further are written inside it, and all other outputs are whole.
    """
    found = dict[str, str]()
    for node in graph.nodes:
        at: Any = node.args[6] if node.target is ATTENTION_KV else None
        if at is not None and at.name in names:
            rows = [user for user in node.users if user.args[1] and _is_result(user)]
            found |= {user.name: names[at.name] for user in rows}
    return found


def _outputs(graph: fx.Graph, function: Function, rows: Mapping[str, str]) -> list[str]:
    """Names of the outputs, with the place of those that are rows."""
    results: Any = graph.output_node().args[0]
    said = [rows.get(getattr(result, "name", "")) for result in results]
    return [
        tensor.name + (f"{ROWS}{place}" if place else "")
        for tensor, place in zip(function.outputs, said, strict=True)
    ]


def _is_result(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def _name(
    model: Any, arguments: Mapping[str, str], examples: Sequence[Tensor], outputs: Sequence[str]
) -> None:
    """Name parameters and results as the manifest does; give parameters their shapes and types."""
    types = {torch.float32: "f32", torch.int32: "i32", torch.int64: "i64", torch.bool: "boolean"}
    given = dict(zip(arguments.values(), examples, strict=True))
    for parameter in list(model.get_parameters()):
        (name,) = parameter.output(0).get_names() & arguments.keys()
        parameter.set_friendly_name(arguments[name])
        example = given[arguments[name]]
        parameter.set_partial_shape(openvino.PartialShape(list(example.shape)))
        parameter.set_element_type(getattr(openvino.Type, types[example.dtype]))
        if not parameter.output(0).get_target_inputs():
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    for result, name in zip(model.get_results(), outputs, strict=True):
        result.set_friendly_name(name)
