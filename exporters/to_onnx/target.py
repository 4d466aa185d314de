"""ONNX for ONNX Runtime: one `.onnx` file per function, one weight file per block.

    traced function -> our three operators become ONNX Runtime's -> torch.onnx -> weights removed

The graph of a function is converted once per signature; the blocks that share it differ in their
weight file alone. A linear layer's matrix is stored [in, out], as MatMul reads it; the head's rows
stay [rows, in] and are read by Gemm, so that a tied head is a range of the embedding table, stored
once. Attention with cache is GroupQueryAttention whose past and present are one
buffer (KV form `shared_buffer`); its causal rule replaces the mask input. Where tokens see later
ones, the rows are scattered into the cache and attention over it is plain operators with the mask.

`linear` has the operators of a linear layer under each scheme.

Source: ONNX operator specification, opset below; `operators` for those of ONNX Runtime.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import optimize_ir
from torch import Tensor
from torch.export import ExportedProgram

from edgevlm.bundle.allowed.onnx_operators import known
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.functions import Tensor as Spec
from edgevlm.bundle.plan import Requires
from edgevlm.errors import ExportError
from edgevlm.exporters.contract import SharedMatrix, Target, TargetOptions
from edgevlm.exporters.to_onnx.attention import write_attention
from edgevlm.exporters.to_onnx.linear import (
    CALIBRATED,
    FORMATS,
    StoredWeight,
    Writer,
    matrix_bytes,
    stored,
)
from edgevlm.exporters.to_onnx.lowering import lower_operators
from edgevlm.exporters.to_onnx.torchlib import tables_read_once
from edgevlm.libraries import first_line

OPSET = 21
ALIGN_BYTES = 64
WEIGHTS = ".weights"  # suffix of a block's weight file


@dataclass(frozen=True)
class Lowered:
    """The graphs of one signature, and the weights that each function reads, by name."""

    graphs: Mapping[str, ir.Model]
    weights: Mapping[str, Mapping[str, StoredWeight]]


def table_format(scheme: str) -> str:
    """Format of the embedding table under a scheme, for `Embedding.dtype`."""
    return FORMATS[scheme].packing if scheme in FORMATS else "f32"


def lower(programs: Mapping[str, ExportedProgram], block: Block, options: TargetOptions) -> Lowered:
    """Convert the traced functions of one signature to ONNX graphs without weights.

    Args:
        programs: Traces by function.
        block: One block of the signature.
        options: With one of the target's schemes.

    Raises:
        ExportError: If torch.onnx cannot convert a graph.
    """
    graphs: dict[str, ir.Model] = {}
    weights: dict[str, Mapping[str, StoredWeight]] = {}
    for name, program in programs.items():
        function = block.function(name)
        try:
            graphs[name], weights[name] = _convert(program, function, options.scheme)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as cause:
            line = first_line(cause)
            raise ExportError(f"{block.name}.{name} does not convert to ONNX: {line}") from cause
        for node in graphs[name].graph:
            if not known(node.domain, node.op_type):
                raise ExportError(
                    f"{block.name}.{name} has the operator '{node.op_type}', which no bundle may"
                    " have: edgevlm/bundle/allowed/onnx_operators.py lists those that may"
                )
    return Lowered(graphs, weights)


def write(
    lowered: Lowered,
    block: Block,
    tensors: Mapping[str, Tensor],
    folder: Path,
    shared: SharedMatrix | None,
) -> tuple[Function, ...]:
    """Write the block's graphs and weights into `folder`; return its functions with their files.

    Args:
        lowered: Graphs of the block's signature.
        block: The block.
        tensors: Its weights by traced name.
        folder: An existing folder; file names inside it are relative.
        shared: Place of the block's only matrix in a file of the same folder (a tied head), which
            is then not written again; else None.
    """
    data = folder / (f"{block.name}{WEIGHTS}" if shared is None else shared.file)
    if shared is None:
        offsets = _write_weights(lowered, tensors, data)
    else:
        every = [w for used in lowered.weights.values() for w in used.values()]
        offsets = {w: shared.scales if w.form == "scales" else shared.numbers for w in every}
    functions = []
    for function in block.functions:
        model = lowered.graphs[function.name]  # blocks differ in offsets and names alone
        for value_name, weight in lowered.weights[function.name].items():
            value = model.graph.initializers[value_name]
            assert value.shape is not None
            assert value.dtype is not None
            size = math.prod(value.shape.numpy()) * int(value.dtype.itemsize)
            value.const_value = ir.ExternalTensor(
                data.name,
                offsets[weight],
                size,
                value.dtype,
                shape=value.shape,
                name=value_name,
                base_dir=folder,
            )
        model.metadata_props["edgevlm.block"] = block.name
        model.metadata_props["edgevlm.function"] = function.name
        model.metadata_props["edgevlm.stage"] = block.stage
        file = folder / f"{block.name}.{function.name}.onnx"
        proto = ir.to_proto(model)
        file.write_bytes(proto.SerializeToString(deterministic=True))
        functions.append(replace(function, file=file.name, inputs=_taken(model, function)))
    return tuple(functions)


def _convert(
    program: ExportedProgram, function: Function, scheme: str
) -> tuple[ir.Model, dict[str, StoredWeight]]:
    with _quiet(), tables_read_once():
        lower_operators(program)
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[t.name for t in function.inputs],
            output_names=[t.name for t in function.outputs],
        )
        assert converted is not None
        model = converted.model
        signature = program.graph_signature
        names = {*signature.inputs_to_parameters.values(), *signature.inputs_to_buffers.values()}
        with _hidden_values(model.graph, names):
            optimize_ir(model)
    graph = model.graph
    _name_constant_outputs(graph)
    weights = _take_out_weights(graph, names, scheme)
    if scheme in FORMATS:
        model.opset_imports["com.microsoft"] = 1
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    _strip_build_info(model)
    return model, weights


@contextmanager
def _hidden_values(graph: ir.Graph, names: set[str]) -> Iterator[None]:
    """Make weights inputs while the optimizer runs.

    It would merge equal weights and fold small ones, and the graph would be right for this block
    alone.
    """
    hidden = {name: graph.initializers.pop(name) for name in sorted(names & {*graph.initializers})}
    tensors = {name: value.const_value for name, value in hidden.items()}
    for value in hidden.values():
        value.const_value = None
        graph.inputs.append(value)
    yield
    for name, value in hidden.items():
        graph.inputs.remove(value)
        value.const_value = tensors[name]
        graph.initializers[name] = value


def _name_constant_outputs(graph: ir.Graph) -> None:
    """An output that is an input or a constant (a method that keeps fixed tokens) needs a node."""
    for index, value in enumerate(graph.outputs):
        if value.is_initializer() or value.is_graph_input():
            node = ir.node("Identity", [value])
            graph.append(node)
            name, out = value.name, node.outputs[0]
            graph.outputs[index] = out
            out.shape, out.type = value.shape, value.type
            if value.is_initializer():
                del graph.initializers[name]  # type: ignore[arg-type]
                value.name = f"{name}.constant"
                graph.register_initializer(value)
                out.name = name


def _take_out_weights(graph: ir.Graph, known: set[str], scheme: str) -> dict[str, StoredWeight]:
    """Replace our Linear and Attention; list the weights that the graph reads.

    All weights leave the graph, small ones too, as blocks of one signature share it. Constants of
    torch.onnx stay inside.
    """
    writer = Writer(graph, scheme)
    for node in list(graph):
        if node.domain == "edgevlm" and node.op_type == "Linear":
            writer.write_out(node)
        elif node.domain == "edgevlm" and node.op_type == "Attention":
            write_attention(node, writer)
    weights = writer.weights
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
        elif name in known:
            weights[name] = StoredWeight(name)
    graph.sort()
    return weights


def _write_weights(
    lowered: Lowered, tensors: Mapping[str, Tensor], file: Path
) -> dict[StoredWeight, int]:
    """Append each weight once, in order of first use; returns its offset in bytes."""
    offsets: dict[StoredWeight, int] = {}
    used_weights = [weight for used in lowered.weights.values() for weight in used.values()]
    if not used_weights:
        return offsets
    packed: dict[
        str, tuple[NDArray[Any], NDArray[Any]]
    ] = {}  # numbers, kept until their scales are written
    with file.open("wb") as out:
        for weight in dict.fromkeys(used_weights):
            data = stored(weight, tensors, packed)
            out.write(b"\0" * (-out.tell() % ALIGN_BYTES))
            offsets[weight] = out.tell()
            out.write(data.data)
    return offsets


def _taken(model: ir.Model, function: Function) -> tuple[Spec, ...]:
    names = {value.name for value in model.graph.inputs}
    return tuple(spec for spec in function.inputs if spec.name in names)


def _strip_build_info(model: ir.Model) -> None:
    """Drop stack traces, paths and version notes, so that the same recipe gives the same bytes."""
    model.producer_name, model.producer_version, model.doc_string = "edgevlm", "", None
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence messages of torch.onnx and onnxscript about passes, which a user cannot act on."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


TARGET = Target(
    summary=f"ONNX opset {OPSET} for ONNX Runtime 1.22 and newer; weights of 32, 16, 8 or 4 bits",
    schemes=("none", *FORMATS),
    requires=Requires((("ai.onnx", str(OPSET)), ("com.microsoft", "1"), ("onnxruntime", "1.22"))),
    weight_suffixes=(WEIGHTS,),
    lower=lower,
    write=write,
    calibrated=CALIBRATED,
    # A session unpacks them when it opens.
    unpacked=tuple(name for name, how in FORMATS.items() if how.product == "float32"),
    table_format=table_format,
    shares_table=True,
    matrix_bytes=matrix_bytes,
    head_multiple=8,  # GroupQueryAttention's, `head_size % 8`
)
